// How a team goes through its row of logits z_0 ... z_{classes - 1}:
//
//   largest()         of the entries of this thread; a NaN is passed over
//   behind(m)         sum of m - z_j over them
//   exponentials(m)   sum of exp(z_j - m) over them, m >= all of them
//   write(out, a, b)  out_j = a exp(z_j - m) - b for them, after exponentials(m)
//   put(out, j, v)    out_j = v after write, by the thread that wrote it
//
// z - m is formed first and log2 e multiplied to it: as one fused step with m log2 e rounded beforehand, large logits
// would lose what sets them apart, or the exponential its range. A row is aligned for packs of kVec, which divides it.
#pragma once

#include <cfloat>

#include "cuda/reduce.cuh"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger(double a, double b) { return fmax(a, b); }
struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return larger(a, b);
  }
};

// What the largest entry is at least: were it -Inf, as that of a part of a row may be, -Inf less it would be NaN.
template <class T>
constexpr T kLowest = sizeof(T) == sizeof(float) ? static_cast<T>(-FLT_MAX) : static_cast<T>(-DBL_MAX);

__device__ inline float exponential(float x) {  // to two units in the last place; 0 below 2^-126
  const float power = x * 1.44269504f;
#ifdef __CUDACC__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(power));
  return result;
#else
  return exp2f(power);
#endif
}
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }

// The first three for rows that are kept: each(f) calls f(v) for every value of this thread, each_class(f) only for
// those that are a class. The exponentials take the places of the numbers.
template <class Row, class acc_t>
struct KeptRow {
  __device__ Row& row() { return static_cast<Row&>(*this); }
  __device__ acc_t largest() {
    acc_t m = kLowest<acc_t>;
    row().each([&](acc_t v) { m = larger(m, v); });
    return m;
  }
  __device__ acc_t behind(acc_t m) {
    acc_t sum = 0;
    row().each_class([&](acc_t v) { sum += m - v; });
    return sum;
  }
  __device__ acc_t exponentials(acc_t m) {
    acc_t sum = 0;
    row().each([&](acc_t& v) { sum += v = exponential(v - m); });
    return sum;
  }
};

// Kept in the registers of the team: read once. Beyond the row is -Inf, which has no share in the largest or in the
// sum.
template <class scalar_t, int kVec, class Team, int kMaxClasses>
struct RegisterRow : KeptRow<RegisterRow<scalar_t, kVec, Team, kMaxClasses>, acc_type<scalar_t>> {
  using acc_t = acc_type<scalar_t>;
  static constexpr int kPacks = kMaxClasses / Team::kSize / kVec;
  static_assert(kPacks * Team::kSize * kVec == kMaxClasses, "the packs of a team must cover a row exactly");
  acc_t value[kPacks][kVec];
  int classes;

  __device__ static int first(int pack) { return (Team::rank() + pack * Team::kSize) * kVec; }

  __device__ RegisterRow(const scalar_t* z, int64_t classes) : classes(static_cast<int>(classes)) {
    Pack<scalar_t, kVec> packs[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
#pragma unroll
      for (int e = 0; e < kVec; ++e) assign(packs[i].value[e], static_cast<acc_t>(-HUGE_VAL));
      if (first(i) < this->classes) packs[i] = *reinterpret_cast<const Pack<scalar_t, kVec>*>(z + first(i));
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
#pragma unroll
      for (int e = 0; e < kVec; ++e) value[i][e] = to_acc(packs[i].value[e]);
  }
  template <class F>
  __device__ void each(F f, int end = kMaxClasses) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      if (first(i) < end) {
#pragma unroll
        for (int e = 0; e < kVec; ++e) f(value[i][e]);
      }
  }
  template <class F>
  __device__ void each_class(F f) {
    each(f, classes);
  }
  template <class out_t>
  __device__ void write(out_t* out, acc_t a, acc_t b) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      if (first(i) < classes) {
        Pack<out_t, kVec> result;
#pragma unroll
        for (int e = 0; e < kVec; ++e) assign(result.value[e], value[i][e] * a - b);
        *reinterpret_cast<Pack<out_t, kVec>*>(out + first(i)) = result;
      }
  }
  template <class out_t>
  __device__ void put(out_t* out, int64_t j, acc_t v) const {
    if (static_cast<int>(j) / kVec % Team::kSize == Team::rank()) assign(out[j], v);
  }
};

// Read twice, the second time from cache: the largest so far and the sum beside it go along.
template <class scalar_t, int kVec, class Team>
struct StreamedRow {
  using acc_t = acc_type<scalar_t>;
  const scalar_t* z;
  int64_t classes;
  acc_t m = kLowest<acc_t>, sum = 0;

  __device__ StreamedRow(const scalar_t* z, int64_t classes) : z(z), classes(classes) {}

  template <class F>
  __device__ void each_pack(F f) const {
    for (int64_t j = Team::rank() * kVec; j < classes; j += Team::size() * kVec) {
      const auto pack = *reinterpret_cast<const Pack<scalar_t, kVec>*>(z + j);  // as one load
      f(j, pack);
    }
  }
  __device__ acc_t largest() {
    each_pack([&](int64_t, const auto& pack) {
      acc_t next = m;
#pragma unroll
      for (int e = 0; e < kVec; ++e) next = larger(next, to_acc(pack.value[e]));
      sum *= exponential(m - next);
      m = next;
#pragma unroll
      for (int e = 0; e < kVec; ++e) sum += exponential(to_acc(pack.value[e]) - m);
    });
    return m;
  }
  __device__ acc_t behind(acc_t m) const {
    acc_t sum = 0;
    each_pack([&](int64_t, const auto& pack) {
#pragma unroll
      for (int e = 0; e < kVec; ++e) sum += m - to_acc(pack.value[e]);
    });
    return sum;
  }
  __device__ acc_t exponentials(acc_t of_row) {
    sum *= exponential(m - of_row);
    m = of_row;
    return sum;
  }
  template <class out_t>
  __device__ void write(out_t* out, acc_t a, acc_t b) const {
    each_pack([&](int64_t j, const auto& pack) {
      Pack<out_t, kVec> result;
#pragma unroll
      for (int e = 0; e < kVec; ++e) assign(result.value[e], exponential(to_acc(pack.value[e]) - m) * a - b);
      *reinterpret_cast<Pack<out_t, kVec>*>(out + j) = result;
    });
  }
  template <class out_t>
  __device__ void put(out_t* out, int64_t j, acc_t v) const {
    if (j / kVec % Team::size() == Team::rank()) assign(out[j], v);
  }
};

// A thread's own in shared memory, which write changes in place. The team is one thread.
template <class acc_t>
struct TileRow : KeptRow<TileRow<acc_t>, acc_t> {
  acc_t* z;
  int classes;

  __device__ TileRow(acc_t* z, int classes) : z(z), classes(classes) {}
  template <class F>
  __device__ void each(F f) {
#pragma unroll 4
    for (int j = 0; j < classes; ++j) f(z[j]);
  }
  template <class F>
  __device__ void each_class(F f) {
    each(f);
  }
  template <class out_t>
  __device__ void write(out_t*, acc_t a, acc_t b) {
    each([&](acc_t& v) { v = v * a - b; });
  }
  template <class out_t>
  __device__ void put(out_t*, int64_t j, acc_t v) const {
    z[j] = v;
  }
};

// f(entry of `rows` rows as they lie in memory, its place in the tile) for all of them, by a block. The pitch of the
// tile is odd, so that the rows of a warp's threads begin in different banks.
__device__ inline int pitch_of(int classes) { return classes | 1; }
template <class F>
__device__ void each_entry(int64_t rows, int classes, F f) {
  const int entries = static_cast<int>(rows) * classes, step = static_cast<int>(blockDim.x);
  int row = static_cast<int>(threadIdx.x) / classes, column = static_cast<int>(threadIdx.x) % classes;
#pragma unroll 8
  for (int entry = static_cast<int>(threadIdx.x); entry < entries; entry += step) {
    f(entry, row * pitch_of(classes) + column);
    row += step / classes, column += step % classes;
    if (column >= classes) column -= classes, ++row;
  }
}

}  // namespace hrrl::cuda
