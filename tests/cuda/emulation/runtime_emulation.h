// The part of CUDA's runtime that launchers call, for the emulated machine: its devices, what they hold, the launch.
//
// Every description of a device that use_device() is given becomes a device of its own, with a number, as in a machine
// of many GPUs: what a launcher remembers of one must not be taken for another's. As on a GPU, a block has 48 KB of
// shared memory, static and dynamic, until its kernel is allowed more, and the limit belongs to kernel and device. To
// lower it is an error here: another thread of the process may be about to launch what it was raised for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "cuda_emulation.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrClusterLaunch,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative,
  cudaLaunchAttributeClusterDimension,
  cudaLaunchAttributeProgrammaticStreamSerialization,
};

struct dim3 : Index3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : Index3{x, y, z} {}
};
struct cudaFuncAttributes {
  int ptxVersion;
  size_t sharedSizeBytes;  // static
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative, programmaticStreamSerializationAllowed;
    Index3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulation {

constexpr size_t kStaticShared = 1024;  // taken for that of every kernel
constexpr size_t kSharedUnasked = 48 * 1024 - kStaticShared;

struct Runtime {
  std::vector<Device> devices;
  int current = 0;
  std::map<std::pair<const void*, int>, size_t> shared_limits;  // of a kernel on a device
};
inline Runtime runtime;

inline void use_device(const Device& chosen) {
  auto& devices = runtime.devices;
  const auto known = std::find(devices.begin(), devices.end(), chosen);
  runtime.current = static_cast<int>(known - devices.begin());
  if (known == devices.end()) devices.push_back(chosen);
  device = chosen;
}

inline size_t shared_limit(const void* kernel) {
  const auto found = runtime.shared_limits.find({kernel, runtime.current});
  return found == runtime.shared_limits.end() ? kSharedUnasked : found->second;
}

inline void complain(const char* what) {
  if (machine.failure.empty()) machine.failure = what;
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* number) { return *number = emulation::runtime.current, cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  const emulation::Device& device = emulation::runtime.devices[static_cast<size_t>(number)];
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = device.multiprocessors, cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      return *value = device.cooperative, cudaSuccess;
    case cudaDevAttrClusterLaunch:
      return *value = device.clusters, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = device.clusters ? 9 : 8, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(device.shared_per_block()), cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {emulation::device.architecture, emulation::kStaticShared};
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const size_t limit = static_cast<size_t>(value);
  if (limit < emulation::shared_limit(kernel))
    emulation::complain("the shared memory of a kernel was limited to less than another launch of it may need");
  if (value < 0 || limit + emulation::kStaticShared > emulation::device.shared_per_block())
    return cudaErrorInvalidValue;
  emulation::runtime.shared_limits[{kernel, emulation::runtime.current}] = limit;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads, size_t shared) {
  if (shared > emulation::shared_limit(reinterpret_cast<const void*>(kernel)))
    emulation::complain("asks for the room of blocks with more shared memory than their kernel is allowed");
  *blocks = static_cast<int>(emulation::occupancy(static_cast<unsigned>(threads), shared));
  return cudaSuccess;
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), const Args&... args) {
  emulation::Shape shape{config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes};
  if (config->numAttrs > 0 && config->attrs->id == cudaLaunchAttributeCooperative)
    shape.cooperative = config->attrs->val.cooperative != 0;
  else if (config->numAttrs > 0 && config->attrs->id == cudaLaunchAttributeProgrammaticStreamSerialization)
    shape.follows = config->attrs->val.programmaticStreamSerializationAllowed != 0;
  else if (config->numAttrs > 0)
    shape.cluster = config->attrs->val.clusterDim.x;
  if (shape.shared_bytes > emulation::shared_limit(reinterpret_cast<const void*>(kernel)))
    emulation::complain("a launch asks for more shared memory than its kernel is allowed");
  emulation::launch(shape, [kernel, args...] { kernel(args...); });
  return emulation::failed() ? cudaErrorInvalidValue : cudaSuccess;
}
