// Elements of the four floating-point types: conversion to the type that computes, and packs of them that move as one.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

#ifdef __CUDACC__  // the host emulation of the tests has declared the same names
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace hrrl::cuda {

// double computes in double, everything else in float.
template <class scalar_t>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class scalar_t>
using acc_type = typename Accumulator<scalar_t>::type;

__device__ inline float to_acc(float v) { return v; }
__device__ inline double to_acc(double v) { return v; }
__device__ inline float to_acc(__half v) { return __half2float(v); }
__device__ inline float to_acc(__nv_bfloat16 v) { return __bfloat162float(v); }

// Rounds to nearest, ties to even; NaN stays NaN.
__device__ inline void assign(float& to, float v) { to = v; }
__device__ inline void assign(double& to, double v) { to = v; }
__device__ inline void assign(__half& to, float v) { to = __float2half_rn(v); }
__device__ inline void assign(__nv_bfloat16& to, float v) { to = __float2bfloat16_rn(v); }

// kCount neighbours, loaded and stored by one instruction of up to 16 bytes. Needs an address that is a multiple of its
// size: is_aligned(row 0) and size % kCount == 0 give that for every row.
template <class scalar_t, int kCount>
struct alignas(sizeof(scalar_t) * kCount) Pack {
  scalar_t value[kCount];
};

constexpr int kPackBytes = 16;
template <class scalar_t>
constexpr int kPackSize = kPackBytes / static_cast<int>(sizeof(scalar_t));

// kCount neighbours, pack by pack
template <int kCount, class acc_t>
__device__ void read_packs(const acc_t* from, acc_t (&to)[kCount]) {
  constexpr int kPack = kPackSize<acc_t>;
#pragma unroll
  for (int n = 0; n < kCount; n += kPack) {
    const auto pack = *reinterpret_cast<const Pack<acc_t, kPack>*>(from + n);
#pragma unroll
    for (int m = 0; m < kPack; ++m) to[n + m] = pack.value[m];
  }
}

// Reals (launch.h) as doubles. The dtype is looked at for every entry, but every thread of the launch finds the same.
__device__ inline double load(Reals from, int64_t i) {
  switch (from.dtype) {
    case Dtype::kDouble:
      return static_cast<const double*>(from.data)[i];
    case Dtype::kHalf:
      return to_acc(static_cast<const __half*>(from.data)[i]);
    case Dtype::kBFloat16:
      return to_acc(static_cast<const __nv_bfloat16*>(from.data)[i]);
    default:
      return static_cast<const float*>(from.data)[i];
  }
}
__device__ inline void store(MutableReals to, int64_t i, double value) {
  switch (to.dtype) {
    case Dtype::kDouble:
      return assign(static_cast<double*>(to.data)[i], value);
    case Dtype::kHalf:
      return assign(static_cast<__half*>(to.data)[i], static_cast<float>(value));
    case Dtype::kBFloat16:
      return assign(static_cast<__nv_bfloat16*>(to.data)[i], static_cast<float>(value));
    default:
      return assign(static_cast<float*>(to.data)[i], static_cast<float>(value));
  }
}

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace hrrl::cuda
