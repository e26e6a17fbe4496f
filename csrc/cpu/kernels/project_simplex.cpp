// The projection onto the simplex {p >= 0, sum p = radius}, one row at a time: P(v) = max(v - nu, 0).
//
// - The threshold nu is the root of f(nu) = sum_j max(v_j - nu, 0) - radius, convex and piecewise linear, by Newton's
//   method (Michelot, 1986). On the support S = {v_j > nu} its step is nu = (sum_S v_j - radius) / |S|, computed in
//   this form because it forgets the rounding of the steps before. It starts at or below the root and climbs, S only
//   shrinks, and when it stops shrinking nu is exact: 2 to 12 rounds in practice, and no sort.
// - P(v + a) = P(v) for a constant a, so v is shifted by its maximum: entries of 1e30 cost no precision.
// - The first visit keeps the largest entry of every block of kBlock. A block below nu has nothing in the support, now
//   or later: no round looks at it again, and its part of the result is written without reading.
// - -inf is an entry that gets nothing. NaN or +inf anywhere gives NaN everywhere (never an endless loop).
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

constexpr int64_t kBlock = kSimplexBlock;
static_assert(kBlock % kWidth == 0, "a block is made of whole vectors");

constexpr double kInfinity = __builtin_inf();

// Calls f with the entries [begin, end), the last vector filled up with -inf: with vectors of doubles, and their place.
template <class F>
HRRL_INLINE void each(const double* v, int64_t begin, int64_t end, F f) {
  for (; begin + kDoubles <= end; begin += kDoubles) f(load(v + begin), begin);
  if (begin < end) {
    vdouble rest = vdouble{} - kInfinity;
    for (int64_t j = begin; j < end; ++j) rest[j - begin] = v[j];
    f(rest, begin);
  }
}
template <class scalar_t, class F>
HRRL_INLINE void each(const scalar_t* v, int64_t begin, int64_t end, F f) {
  for (; begin + kWidth <= end; begin += kWidth) {
    const vfloat value = load(v + begin);
    f(low(value), begin);
    f(high(value), begin + kDoubles);
  }
  if (begin < end) {
    vfloat rest = vfloat{} - static_cast<float>(kInfinity);
    for (int64_t j = begin; j < end; ++j) rest[j - begin] = to_float(v[j]);
    f(low(rest), begin);
    f(high(rest), begin + kDoubles);
  }
}

// The largest entry of each block, and of the row; NaN where one is NaN or +inf, or all are -inf.
template <class scalar_t>
static double find_maxima(const scalar_t* v, int64_t size, double* block_max) {
  double row_max = -kInfinity;
  vlong finite = ~vlong{};
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    vdouble largest = vdouble{} - kInfinity;
    each(v, begin, begin + kBlock < size ? begin + kBlock : size, [&](vdouble value, int64_t) {
      largest = max(value, largest);
      finite &= value < kInfinity;
    });
    const double found = max(largest);
    row_max = found > row_max ? found : row_max;
    block_max[begin / kBlock] = found;
  }
  return sum(finite) == -kDoubles && row_max > -kInfinity ? row_max : __builtin_nan("");
}

// nu - max
template <class scalar_t>
static double find_threshold(const scalar_t* v, int64_t size, double radius, double max, const double* block_max) {
  double nu = -radius;  // at or below the root: the largest entry alone reaches the radius
  for (int64_t last_count = size + 1;;) {
    vdouble sum_above = {};
    vlong count_above = {};
    for (int64_t begin = 0; begin < size; begin += kBlock) {
      if (!(block_max[begin / kBlock] - max > nu)) continue;
      each(v, begin, begin + kBlock < size ? begin + kBlock : size, [&](vdouble value, int64_t) {
        value -= max;
        sum_above += value > nu ? value : vdouble{};
        count_above -= value > nu;  // a comparison that holds is -1
      });
    }
    const int64_t count = sum(count_above);
    // The support only shrinks. Where rounding would let it grow again the root is reached, too: going on could
    // alternate for ever.
    if (count >= last_count || count == 0) return nu;
    last_count = count;
    nu = (sum(sum_above) - radius) / static_cast<double>(count);
  }
}

// The entries of P(v) from those of v.
struct Above {
  double max, nu;
  HRRL_INLINE_MEMBER vdouble operator()(vdouble v) const {
    const vdouble p = v - max - nu;
    return p > 0.0 ? p : vdouble{};
  }
  HRRL_INLINE_MEMBER double operator()(double v) const {
    const double p = v - max - nu;
    return p > 0.0 ? p : 0.0;
  }
};

// The whole vectors of [begin, end); returns where they stop.
template <class in_t, class out_t>
HRRL_INLINE int64_t write(const in_t* v, out_t* out, int64_t begin, int64_t end, Above above) {
  if constexpr (sizeof(in_t) == sizeof(double)) {
    for (; begin + kDoubles <= end; begin += kDoubles) store(out + begin, above(load(v + begin)));
  } else {
    for (; begin + kWidth <= end; begin += kWidth) {
      const vfloat value = load(v + begin);
      store(out + begin, join(above(low(value)), above(high(value))));
    }
  }
  return begin;
}

template <class in_t, class out_t>
static void project(const in_t* v, out_t* out, int64_t size, double radius, double* block_max, bool keeps = false) {
  const double max = find_maxima(v, size, block_max);
  if (max != max) {
    if (keeps) return;
    for (int64_t j = 0; j < size; ++j) assign(out[j], max);
    return;
  }
  const Above above{max, find_threshold(v, size, radius, max, block_max)};
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = begin + kBlock < size ? begin + kBlock : size;
    if (block_max[begin / kBlock] - max > above.nu)
      for (int64_t j = write(v, out, begin, end, above); j < end; ++j) assign(out[j], above(to_double(v[j])));
    else
      __builtin_memset(out + begin, 0, static_cast<size_t>(end - begin) * sizeof(out_t));
  }
}

void project_simplex(Dtype dtype, const void* v, void* out, int64_t size, double radius, double* block_max) {
  dispatch(dtype, [&](auto type) {
    using scalar_t = decltype(type);
    project(static_cast<const scalar_t*>(v), static_cast<scalar_t*>(out), size, radius, block_max);
  });
}

// Calls f with the entries of a row of p and of one of g: vectors of doubles, and their place. The last are filled up
// with zeros, which are outside of every support.
template <class F>
HRRL_INLINE void each_pair(const double* p, const double* g, int64_t size, F f) {
  int64_t j = 0;
  for (; j + kDoubles <= size; j += kDoubles) f(load(p + j), load(g + j), j);
  vdouble rest_p = {}, rest_g = {};
  for (int64_t e = j; e < size; ++e) rest_p[e - j] = p[e], rest_g[e - j] = g[e];
  if (j < size) f(rest_p, rest_g, j);
}
template <class scalar_t, class F>
HRRL_INLINE void each_pair(const scalar_t* p, const scalar_t* g, int64_t size, F f) {
  int64_t j = 0;
  for (; j + kWidth <= size; j += kWidth) {
    const vfloat of_p = load(p + j), of_g = load(g + j);
    f(low(of_p), low(of_g), j);
    f(high(of_p), high(of_g), j + kDoubles);
  }
  vfloat rest_p = {}, rest_g = {};
  for (int64_t e = j; e < size; ++e) rest_p[e - j] = to_float(p[e]), rest_g[e - j] = to_float(g[e]);
  if (j < size) f(low(rest_p), low(rest_g), j);
  if (j + kDoubles < size) f(high(rest_p), high(rest_g), j + kDoubles);
}

// 1_S (g - mean_S g), S = {p > 0}
template <class scalar_t>
static void backward(const scalar_t* p, const scalar_t* g, scalar_t* out, int64_t size) {
  vdouble sums = {};
  vlong counts = {};
  each_pair(p, g, size, [&](vdouble of_p, vdouble of_g, int64_t) {
    sums += of_p > 0.0 ? of_g : vdouble{};
    counts -= of_p > 0.0;
  });
  const double mean = sum(sums) / static_cast<double>(sum(counts));
  const auto moved = [mean](vdouble of_p, vdouble of_g) { return of_p > 0.0 ? of_g - mean : vdouble{}; };
  int64_t j = 0;
  if constexpr (sizeof(scalar_t) == sizeof(double)) {
    for (; j + kDoubles <= size; j += kDoubles) store(out + j, moved(load(p + j), load(g + j)));
  } else {
    for (; j + kWidth <= size; j += kWidth) {
      const vfloat of_p = load(p + j), of_g = load(g + j);
      store(out + j, join(moved(low(of_p), low(of_g)), moved(high(of_p), high(of_g))));
    }
  }
  for (; j < size; ++j) assign(out[j], to_double(p[j]) > 0.0 ? to_double(g[j]) - mean : 0.0);
}

void project_simplex_backward(Dtype dtype, const void* p, const void* grad, void* out, int64_t size) {
  dispatch(dtype, [&](auto type) {
    using scalar_t = decltype(type);
    backward(static_cast<const scalar_t*>(p), static_cast<const scalar_t*>(grad), static_cast<scalar_t*>(out), size);
  });
}

// Entries [begin, begin + count) as doubles.
static void read(Dtype dtype, const void* from, int64_t begin, int64_t count, double* to) {
  dispatch(dtype, [&](auto type) {
    const auto* v = static_cast<const decltype(type)*>(from) + begin;
    for (int64_t j = 0; j < count; ++j) to[j] = to_double(v[j]);
  });
}

void update_distribution(const UpdateArgs& a, double* ascended, double* block_max) {
  const double eta = a.eta, lam = a.lam;
  double q[kBlock], gain[kBlock], q0[kBlock];
  for (int64_t begin = 0; begin < a.size; begin += kBlock) {
    const int64_t count = a.size - begin < kBlock ? a.size - begin : kBlock;
    read(a.q_type, a.q, begin, count, q);
    read(a.concept_loss_type, a.concept_loss, begin, count, gain);
    read(a.q0_type, a.q0, begin, count, q0);
    for (int64_t k = 0; k < count; ++k) ascended[begin + k] = q[k] + eta * (gain[k] - lam * (q[k] - q0[k]));
  }
  if (a.q_type == Dtype::kDouble)
    project(ascended, static_cast<double*>(a.out), a.size, 1.0, block_max, a.keeps);
  else
    project(ascended, static_cast<float*>(a.out), a.size, 1.0, block_max, a.keeps);
}

}  // namespace hrrl::cpu::HRRL_ISA
