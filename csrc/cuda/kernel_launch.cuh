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
  bool follows = false;      // may begin before the launch before it has ended: wait_for_launch_before()
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
  const bool follows = shape.follows && compiled_for<kKernel>(90);
  config.numAttrs = shape.cluster > 1 || shape.cooperative || follows ? 1 : 0;
  if (follows) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  } else if (shape.cooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  cudaLaunchKernelEx(&config, kKernel, args...);
}

// For kernels launched with `follows`: every thread waits here until the launch before has ended and all that it wrote
// is seen. Before, a kernel may read what is older than that launch, and writes nothing that leaves the block.
// Compiled for architectures before 90 it is nothing: launch_kernel() then launches after the end, as ever.
__device__ inline void wait_for_launch_before() {
#if !defined(__CUDACC__)
  if (emulation::architecture() >= 90) emulation::wait_for_launch_before(__FILE__, __LINE__);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// For kernels before such a launch: it may begin as soon as every block has come here, or has left.
__device__ inline void let_next_launch_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
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
