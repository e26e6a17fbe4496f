// What the current device can do, and what a kernel can do there as it was compiled. Every answer is asked for once per
// kernel and device; what follows costs a look at the current device. All of it may be asked while a graph is captured.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace hrrl::cuda {

// An error of a question is taken back, or the check after the launch would report it: what is wrong shows there, too.
inline bool succeeded(cudaError_t error) {
  if (error == cudaSuccess) return true;
  (void)cudaGetLastError();
  return false;
}

// A number for every device: ask(device), 0 or more, is kept; kUnknown is not, and the next call asks again. Threads
// that ask at the same time get the same answer, so none waits for another.
constexpr int kUnknown = -1;
class PerDevice {
 public:
  template <class Ask>
  int operator()(Ask ask) {
    int device = 0;
    if (!succeeded(cudaGetDevice(&device))) return kUnknown;
    if (device >= kDevices) return ask(device);
    std::atomic<int>& kept = kept_[static_cast<size_t>(device)];
    int answer = kept.load(std::memory_order_acquire) - 1;
    if (answer == kUnknown) {
      answer = ask(device);
      kept.store(answer + 1, std::memory_order_release);
    }
    return answer;
  }

 private:
  static constexpr int kDevices = 128;
  std::array<std::atomic<int>, kDevices> kept_{};  // an answer + 1
};

// ---------------------------------------------------------------------------------------------------------------------
// The device

inline int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  return succeeded(cudaDeviceGetAttribute(&value, attribute, device)) ? value : kUnknown;
}

inline int multiprocessors() {
  static PerDevice known;
  const int count = known([](int device) { return device_attribute(cudaDevAttrMultiProcessorCount, device); });
  return count < 1 ? 1 : count;
}

// Barriers of the whole grid
inline bool has_cooperative_launch() {
  static PerDevice known;
  return known([](int device) { return device_attribute(cudaDevAttrCooperativeLaunch, device); }) > 0;
}

// Clusters of 8 blocks with up to 227 KB of shared memory each: compute capability 9 and 10
inline bool has_clusters() {
  static PerDevice known;
  const int answer = known([](int device) {
    const int clusters = device_attribute(cudaDevAttrClusterLaunch, device);
    const int major = device_attribute(cudaDevAttrComputeCapabilityMajor, device);
    if (clusters == kUnknown || major == kUnknown) return kUnknown;
    return static_cast<int>(clusters > 0 && (major == 9 || major == 10));
  });
  return answer > 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// A kernel there

// Whether kKernel was compiled for that architecture or a later one. Asking the device is not enough: a kernel that was
// compiled for compute_80 alone runs on compute capability 9, translated when it is loaded, but its __CUDA_ARCH__ is
// 800, so that what stands behind a test of that is not there. __CUDA_ARCH__ is that of the virtual architecture,
// ptxVersion; binaryVersion is that of the translation.
template <auto kKernel>
bool compiled_for(int architecture) {
  static PerDevice known;
  const int compiled = known([](int) {
    cudaFuncAttributes attributes{};
    const bool told = succeeded(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kKernel)));
    return told ? attributes.ptxVersion : kUnknown;
  });
  return compiled >= architecture;
}

// Whether blocks of kKernel can work as a cluster. Without its instructions (blocks.cuh) each would take itself for
// all.
template <auto kKernel>
bool runs_in_clusters() {
  return has_clusters() && compiled_for<kKernel>(90);
}

// Lets launches of kKernel have all the shared memory that a block can have. Not what one launch needs: the limit
// belongs to the kernel, and another thread with a smaller launch would lower it before ours.
template <auto kKernel>
void allow_shared_memory() {
  static PerDevice done;
  done([](int device) {
    const auto kernel = reinterpret_cast<const void*>(kKernel);
    const int room = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaFuncAttributes attributes{};
    if (room == kUnknown || !succeeded(cudaFuncGetAttributes(&attributes, kernel))) return kUnknown;
    const int limit = room - static_cast<int>(attributes.sharedSizeBytes);
    return succeeded(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit)) ? 1 : kUnknown;
  });
}

// How many blocks of kKernel the device holds at once, which is the most that a cooperative launch may have; 0 where
// there are none. Of registers, too: how many the compiler took is known to the runtime alone, and builds for a
// debugger or a sanitizer take more.
template <auto kKernel, int kBlock, size_t kSharedBytes = 0>
int64_t resident_blocks() {
  if (!has_cooperative_launch()) return 0;
  static PerDevice known;
  const int of_multiprocessor = known([](int) {
    if (kSharedBytes > 0) allow_shared_memory<kKernel>();
    int blocks = 0;
    const bool told = succeeded(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, kBlock, kSharedBytes));
    return told ? blocks : kUnknown;
  });
  return of_multiprocessor < 1 ? 0 : static_cast<int64_t>(multiprocessors()) * of_multiprocessor;
}

}  // namespace hrrl::cuda
