// Runs CUDA kernels on the host, so that their logic is tested where there is no GPU.
//
// A translation unit includes this file and then a kernel file (csrc/cuda/*.cu), compiled by an ordinary C++ compiler,
// and is linked to the machine (machine.cpp, runtime.cpp), which is compiled once for all of them. The threads of a
// block are fibers that run until they reach a barrier or a warp operation, which are enforced as CUDA specifies them:
//
//   __syncthreads*   every thread of the block arrives, at the same line; none may have left the kernel
//   *_sync(mask)     every lane of the mask arrives, at the same line with the same mask; the caller is one of them
//   sync_cluster, sync_grid    every thread of the blocks that wait for each other: of a cluster, or of a cooperative
//                    launch. Such blocks run side by side, each with shared memory of its own; other blocks run one
//                    after another
//
// A kernel that breaks these rules is reported by failure(), with its line; it never hangs. A missing barrier shows
// because the order of blocks, warps and lanes is set by reset(seed): 0 runs them as numbered, 1 backwards, others
// shuffled. In each order the first block and its first warp run as far ahead of the others as the barriers allow, so
// results that differ between orders mean a race.
//
// A launch is run when the next one comes, or when failure() is asked. One that may begin before the launch before it
// has ended (`follows`) is run first, until a gang waits for that launch; only then is that one run.
//
// What launchers ask of the runtime is in runtime_emulation.h.
//
// Static __shared__ arrays keep what the previous block left there, dynamic ones are filled with NaNs. Nothing is
// modelled of speed, caches, memory order between blocks or the bank of an address: only a GPU shows these.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

// ---------------------------------------------------------------------------------------------------------------------
// Words of CUDA C++ that the host ignores

#define __global__
#define __device__
#define __launch_bounds__(...)
// The emulation is one thread to the system, so its thread-local variables are static ones; but they lie together, and
// what a block has there can be put aside while another runs (StaticShared).
#define __shared__ static thread_local

// ---------------------------------------------------------------------------------------------------------------------
// Types

struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half v) { return static_cast<float>(v.value); }
inline __half __float2half_rn(float v) { return {static_cast<_Float16>(v)}; }
inline float __bfloat162float(__nv_bfloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// ---------------------------------------------------------------------------------------------------------------------
// The machine

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
extern Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kWarpSize = 32;

struct Device {
  static constexpr unsigned kThreads = 1536;  // on a multiprocessor at once
  int multiprocessors = 4;
  bool clusters = true, cooperative = true;
  // What the kernels were compiled for: the instructions of a cluster exist from 90 on. It may be less than the device
  // is, which translates what it finds.
  int architecture = 90;
  // The most on a multiprocessor at once, whatever else there is room for: kernels may need many registers.
  unsigned blocks_at_once = 32;

  size_t shared_per_block() const { return (clusters ? 227 : 99) * 1024; }
  bool operator==(const Device& o) const {
    return multiprocessors == o.multiprocessors && clusters == o.clusters && cooperative == o.cooperative &&
           architecture == o.architecture && blocks_at_once == o.blocks_at_once;
  }
};
extern Device device;
inline int architecture() { return device.architecture; }

// How many such blocks a multiprocessor holds; each has 1 KB for the system, too.
unsigned occupancy(unsigned threads, size_t shared_bytes);

struct Shape {
  unsigned grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;
  bool cooperative = false, follows = false;
};

// Forgets an earlier failure and the launches, and sets the order of blocks, warps and lanes.
void reset(unsigned seed);
unsigned launches();  // since then
void launch(const Shape& shape, std::function<void()> body);
const char* failure();  // of what was launched, which has run then; or null
bool failed();
void complain(const char* what);

// What a thread asks for. Who waits, and where: of a warp, a block, a gang (the blocks that wait for each other), for
// the launch before.
enum class Scope { kWarp, kBlock, kGang, kLaunch };

// Waits for the others, and returns what fiber `source` brought (at a wider scope: all of them).
uint64_t meet(const char* file, int line, Scope scope, unsigned mask, uint64_t given, unsigned source);
unsigned current();  // the fiber that runs
void* dynamic_shared();
void sync_cluster(const char* file, int line);
// A barrier in two halves: nobody is through the second before all have come to the first, here to the second.
void arrive_at_cluster();
void wait_for_cluster(const char* file, int line);
// No barrier: threads go on for themselves.
void wait_for_launch_before(const char* file, int line);
void sync_grid(const char* file, int line);
// `own`, in the dynamic shared memory of this block, as another block of the gang has it.
const void* in_block(const void* own, unsigned rank);

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(const char* file, int line, unsigned mask, T value, unsigned source_lane) {
  const unsigned source = current() / kWarpSize * kWarpSize + source_lane % kWarpSize;
  const uint64_t bits = meet(file, line, Scope::kWarp, mask, pack(value), source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int sync_block(const char* file, int line, bool value) {
  return meet(file, line, Scope::kBlock, 0, value, current()) != 0;
}

}  // namespace emulation

// ---------------------------------------------------------------------------------------------------------------------
// What kernels call

// Fibers take turns at barriers alone, so that nothing comes between.
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

inline void __threadfence() {}  // blocks run one after another, or see what others wrote at once

#define __syncthreads() ((void)emulation::sync_block(__FILE__, __LINE__, false))
#define __syncthreads_or(value) emulation::sync_block(__FILE__, __LINE__, (value) != 0)
#define __syncwarp() \
  ((void)emulation::meet(__FILE__, __LINE__, emulation::Scope::kWarp, 0xffffffffu, 0, emulation::current()))
#define __shfl_sync(mask, value, lane) emulation::shuffle(__FILE__, __LINE__, mask, value, lane)
#define __shfl_xor_sync(mask, value, offset) \
  emulation::shuffle(__FILE__, __LINE__, mask, value, (threadIdx.x % 32) ^ (offset))
