// From a kernel and its arguments to a launch, and from a Dtype to a C++ type.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

// ---------------------------------------------------------------------------------------------------------------------
// Launches

struct LaunchShape {
  int64_t grid;  // fewer than 2^31 blocks: arrays that would need more exceed every device's memory
  int block;
  size_t shared_bytes = 0;
  int cluster = 1;           // blocks of a cluster, neighbours in the grid
  bool cooperative = false;  // all blocks are resident at once, so that they can wait for each other
};

// kKernel<<<...>>>(args...). Errors are left for cudaGetLastError, where the torch border looks for them.
template <auto kKernel, class... Args>
void launch_kernel(const LaunchShape& shape, CUstream_st* stream, const Args&... args) {
  // Also where all is well without it: static and dynamic shared memory may pass the 48 KB that need no leave together.
  if (shape.shared_bytes > 0) allow_shared_memory<kKernel>();
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.grid));
  config.blockDim = dim3(static_cast<unsigned>(shape.block));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1 || shape.cooperative ? 1 : 0;
  if (shape.cooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  cudaLaunchKernelEx(&config, kKernel, args...);
}

// The shared memory that the launch asked for.
template <class T>
__device__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char hrrl_dynamic_shared[];
  return reinterpret_cast<T*>(hrrl_dynamic_shared);
#else
  return static_cast<T*>(emulation::dynamic_shared());
#endif
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<scalar_t>{}).
template <class F>
void dispatch(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f(Type<float>{});
    case Dtype::kDouble:
      return f(Type<double>{});
    case Dtype::kHalf:
      return f(Type<__half>{});
    case Dtype::kBFloat16:
      return f(Type<__nv_bfloat16>{});
  }
}

}  // namespace hrrl::cuda
