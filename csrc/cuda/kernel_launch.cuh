// From a kernel and its arguments to a launch, from a Dtype to a C++ type, and what a launcher asks of the device.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include "cuda/launch.h"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

// ---------------------------------------------------------------------------------------------------------------------
// The device

struct Device {
  int multiprocessors = 1;
  bool clusters = false;  // clusters of 8 blocks with up to 227 KB of shared memory each: compute capability 9 and 10
  bool cooperative = false;  // barriers of the whole grid
};

#ifdef __CUDACC__
// Asked of every device once; the initialisation of a static is thread-safe.
inline const Device& current_device() {
  static const std::vector<Device> devices = [] {
    int count = 0;
    cudaGetDeviceCount(&count);
    std::vector<Device> result(static_cast<size_t>(count));
    for (int d = 0; d < count; ++d) {
      int multiprocessors = 1, major = 0, clusters = 0, cooperative = 0;
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, d);
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, d);
      cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, d);
      cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, d);
      result[static_cast<size_t>(d)] = {multiprocessors, clusters != 0 && (major == 9 || major == 10),
                                        cooperative != 0};
    }
    return result;
  }();
  static const Device none;
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess || current >= static_cast<int>(devices.size())) return none;
  return devices[static_cast<size_t>(current)];
}
#else
inline Device current_device() {
  return {emulation::device.multiprocessors, emulation::device.clusters, emulation::device.cooperative};
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Launches

struct LaunchShape {
  int64_t grid;  // fewer than 2^31 blocks: arrays that would need more exceed every device's memory
  int block;
  size_t shared_bytes = 0;
  int cluster = 1;           // blocks of a cluster, neighbours in the grid
  bool cooperative = false;  // all blocks are resident at once, so that they can wait for each other
};

// Under nvcc this is kernel<<<...>>>(args...); the host emulation of the tests has its own. Errors are left for
// cudaGetLastError, where the torch border looks for them.
template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), const LaunchShape& shape, [[maybe_unused]] CUstream_st* stream,
                   const Args&... args) {
#ifdef __CUDACC__
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (shape.shared_bytes > kAlwaysAllowed)
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shape.shared_bytes));
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
  cudaLaunchKernelEx(&config, kernel, args...);
#else
  emulation::launch({static_cast<unsigned>(shape.grid), static_cast<unsigned>(shape.block), shape.shared_bytes,
                     static_cast<unsigned>(shape.cluster), shape.cooperative},
                    [&] { kernel(args...); });
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
