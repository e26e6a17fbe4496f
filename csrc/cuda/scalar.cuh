// Elements of the four floating-point types: conversion to the type that computes, and packs of them that move as one.
#pragma once

#include <cstdint>

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

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace hrrl::cuda
