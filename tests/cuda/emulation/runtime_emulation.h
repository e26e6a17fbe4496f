// The part of CUDA's runtime that launchers call, for the emulated machine: its devices, what they hold, the launch.
//
// Every description of a device that use_device() is given becomes a device of its own, with a number, as in a machine
// of many GPUs: what a launcher remembers of one must not be taken for another's. As on a GPU, a block has 48 KB of
// shared memory, static and dynamic, until its kernel is allowed more, and the limit belongs to kernel and device. To
// lower it is an error here: another thread of the process may be about to launch what it was raised for.
#pragma once

#include <cstddef>

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

void use_device(const Device& chosen);
size_t shared_limit(const void* kernel);  // of dynamic shared memory, on this device

}  // namespace emulation

cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* number);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);

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
