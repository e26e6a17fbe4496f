// The runtime of runtime_emulation.h.
#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "runtime_emulation.h"

namespace emulation {

constexpr size_t kStaticShared = 1024;  // taken for that of every kernel
constexpr size_t kSharedUnasked = 48 * 1024 - kStaticShared;

struct Runtime {
  std::vector<Device> devices;
  int current = 0;
  std::map<std::pair<const void*, int>, size_t> shared_limits;  // of a kernel on a device
};
static Runtime runtime;

void use_device(const Device& chosen) {
  auto& devices = runtime.devices;
  const auto known = std::find(devices.begin(), devices.end(), chosen);
  runtime.current = static_cast<int>(known - devices.begin());
  if (known == devices.end()) devices.push_back(chosen);
  device = chosen;
}

size_t shared_limit(const void* kernel) {
  const auto found = runtime.shared_limits.find({kernel, runtime.current});
  return found == runtime.shared_limits.end() ? kSharedUnasked : found->second;
}

}  // namespace emulation

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* number) { return *number = emulation::runtime.current, cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
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

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {emulation::device.architecture, emulation::kStaticShared};
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const size_t limit = static_cast<size_t>(value);
  if (limit < emulation::shared_limit(kernel))
    emulation::complain("the shared memory of a kernel was limited to less than another launch of it may need");
  if (value < 0 || limit + emulation::kStaticShared > emulation::device.shared_per_block())
    return cudaErrorInvalidValue;
  emulation::runtime.shared_limits[{kernel, emulation::runtime.current}] = limit;
  return cudaSuccess;
}
