// How a team visits its row of logits: each(f) calls f(j, z_j), map(out, f) stores out_j = f(j, z_j), for every class j
// once. `classes` is a multiple of kVec, and the rows are aligned for packs of kVec. A row of no classes is not read.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

// Kept in the registers of the team: read from memory once.
template <class scalar_t, int kVec, class Team, int kMaxClasses>
struct RegisterRow {
  static constexpr int kPacks = kMaxClasses / Team::kSize / kVec;
  static_assert(kPacks * Team::kSize * kVec == kMaxClasses, "the packs of a team must cover a row exactly");
  Pack<scalar_t, kVec> packs[kPacks];
  int classes;

  __device__ static int first(int pack) { return (Team::rank() + pack * Team::kSize) * kVec; }

  __device__ RegisterRow(const scalar_t* z, int64_t classes) : classes(static_cast<int>(classes)) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      if (first(i) < this->classes) packs[i] = *reinterpret_cast<const Pack<scalar_t, kVec>*>(z + first(i));
  }
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      if (first(i) < classes) {
#pragma unroll
        for (int e = 0; e < kVec; ++e) f(first(i) + e, to_acc(packs[i].value[e]));
      }
  }
  template <class out_t, class F>
  __device__ void map(out_t* out, F f) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      if (first(i) < classes) {
        Pack<out_t, kVec> result;
#pragma unroll
        for (int e = 0; e < kVec; ++e) assign(result.value[e], f(first(i) + e, to_acc(packs[i].value[e])));
        *reinterpret_cast<Pack<out_t, kVec>*>(out + first(i)) = result;
      }
  }
};

// Read from memory, that is from cache, at every visit.
template <class scalar_t, int kVec, class Team>
struct StreamedRow {
  const scalar_t* z;
  int64_t classes;

  __device__ StreamedRow(const scalar_t* z, int64_t classes) : z(z), classes(classes) {}

  template <class F>
  __device__ void each(F f) const {
    for (int64_t j = Team::rank() * kVec; j < classes; j += Team::size() * kVec) {
      const auto pack = *reinterpret_cast<const Pack<scalar_t, kVec>*>(z + j);
#pragma unroll
      for (int e = 0; e < kVec; ++e) f(j + e, to_acc(pack.value[e]));
    }
  }
  template <class out_t, class F>
  __device__ void map(out_t* out, F f) const {
    for (int64_t j = Team::rank() * kVec; j < classes; j += Team::size() * kVec) {
      const auto pack = *reinterpret_cast<const Pack<scalar_t, kVec>*>(z + j);
      Pack<out_t, kVec> result;
#pragma unroll
      for (int e = 0; e < kVec; ++e) assign(result.value[e], f(j + e, to_acc(pack.value[e])));
      *reinterpret_cast<Pack<out_t, kVec>*>(out + j) = result;
    }
  }
};

}  // namespace hrrl::cuda
