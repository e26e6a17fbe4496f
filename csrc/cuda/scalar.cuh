// Elements of the four floating-point types: conversion to the type that computes, and packs of them that move as one.
#pragma once

#include <cstdint>
#include <cstring>

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

// Reals (launch.h) as doubles, in two steps: fetch() starts the load and does not wait for it, so several can be on
// their way. The dtype is looked at for every entry, but every thread of the launch finds the same.
struct Fetched {
  uint64_t bits;
};
template <class scalar_t>
__device__ Fetched fetch_as(const void* data, int64_t i) {
  Fetched result{0};
  memcpy(&result.bits, static_cast<const scalar_t*>(data) + i, sizeof(scalar_t));
  return result;
}
__device__ inline Fetched fetch(Reals from, int64_t i) {
  switch (from.dtype) {
    case Dtype::kDouble:
      return fetch_as<double>(from.data, i);
    case Dtype::kHalf:
    case Dtype::kBFloat16:
      return fetch_as<__half>(from.data, i);
    default:
      return fetch_as<float>(from.data, i);
  }
}
template <class scalar_t>
__device__ double value_as(Fetched fetched) {
  scalar_t value;
  memcpy(&value, &fetched.bits, sizeof(value));
  return static_cast<double>(to_acc(value));
}
__device__ inline double value_of(Reals from, Fetched fetched) {
  switch (from.dtype) {
    case Dtype::kDouble:
      return value_as<double>(fetched);
    case Dtype::kHalf:
      return value_as<__half>(fetched);
    case Dtype::kBFloat16:
      return value_as<__nv_bfloat16>(fetched);
    default:
      return value_as<float>(fetched);
  }
}
__device__ inline double load(Reals from, int64_t i) { return value_of(from, fetch(from, i)); }

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
