// Runs CUDA kernels on the host, so that their logic is tested where there is no GPU.
//
// A translation unit includes this file and then a kernel file (csrc/cuda/*.cu), compiled by an ordinary C++ compiler.
// Blocks run one after another. The threads of a block are fibers (ucontext) that run until they reach a barrier or a
// warp operation, which are enforced as CUDA specifies them:
//
//   __syncthreads*   every thread of the block arrives, at the same line; none may have left the kernel
//   *_sync(mask)     every lane of the mask arrives, at the same line with the same mask; the caller is one of them
//
// A kernel that breaks these rules is reported by failure(), with its line; it never hangs. A missing barrier shows
// because the order of blocks, warps and lanes is set by reset(seed): 0 runs them as numbered, 1 backwards, others
// shuffled. In each order the first warp runs as far ahead of the others as the barriers allow, so results that differ
// between orders mean a race.
//
// Static __shared__ arrays keep what the previous block left there, dynamic ones are filled with NaNs. Nothing is
// modelled of speed, caches, memory order between blocks or the bank of an address: only a GPU shows these.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

// ---------------------------------------------------------------------------------------------------------------------
// Words of CUDA C++ that the host ignores

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

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
inline Index3 threadIdx, blockIdx, blockDim{1, 1, 1}, gridDim{1, 1, 1};

namespace emulation {

constexpr unsigned kWarpSize = 32, kWholeBlock = 0;  // kWholeBlock: no mask of a warp operation is empty
constexpr size_t kStackBytes = 256 * 1024, kMaxThreads = 1024;

struct Fiber {
  enum { kReady, kWaiting, kLeft } state;
  ucontext_t context;
  // While waiting: where, for whom, what it brings, and from which thread of the block it takes
  const char* file;
  int line;
  unsigned mask;
  uint64_t given, taken;
  unsigned source;
};

struct Machine {
  std::vector<Fiber> fibers = std::vector<Fiber>(kMaxThreads);
  std::vector<std::unique_ptr<char[]>> stacks;
  ucontext_t scheduler;
  unsigned threads = 0, current = 0;
  std::function<void()> body;
  std::vector<unsigned char> shared;
  unsigned seed = 0;
  std::mt19937 random;
  std::string failure;
};
inline Machine machine;

// Forgets an earlier failure and sets the order of blocks, warps and lanes.
inline void reset(unsigned seed) {
  machine.failure.clear();
  machine.seed = seed, machine.random.seed(seed);
}
inline void* dynamic_shared() { return machine.shared.data(); }
inline const char* failure() { return machine.failure.empty() ? nullptr : machine.failure.c_str(); }

inline void fail(const char* what, const Fiber& at) {
  if (!machine.failure.empty()) return;
  char text[512];
  std::snprintf(text, sizeof(text), "%s (block %u, thread %u, %s:%d, mask %08x)", what, blockIdx.x,
                static_cast<unsigned>(&at - machine.fibers.data()), at.file, at.line, at.mask);
  machine.failure = text;
}

// 0 .. count - 1 in the order of the seed
inline std::vector<unsigned> order(unsigned count) {
  std::vector<unsigned> result(count);
  std::iota(result.begin(), result.end(), 0u);
  if (machine.seed == 1) std::reverse(result.begin(), result.end());
  if (machine.seed > 1) std::shuffle(result.begin(), result.end(), machine.random);
  return result;
}

// Called by a thread: waits for the others of `mask` (or of the block), and returns what thread `source` brought.
inline uint64_t meet(const char* file, int line, unsigned mask, uint64_t given, unsigned source) {
  Fiber& self = machine.fibers[machine.current];
  self.state = Fiber::kWaiting;
  self.file = file, self.line = line, self.mask = mask, self.given = given, self.source = source;
  swapcontext(&self.context, &machine.scheduler);
  return self.taken;
}

// Lets the waiting group of thread `t` go on if it is complete.
inline void release(unsigned t) {
  const Fiber& self = machine.fibers[t];
  const unsigned warp = t / kWarpSize * kWarpSize;
  std::vector<unsigned> group;
  if (self.mask == kWholeBlock) {
    for (unsigned other = 0; other < machine.threads; ++other) group.push_back(other);
  } else {
    for (unsigned lane = 0; lane < kWarpSize; ++lane)
      if (self.mask >> lane & 1) group.push_back(warp + lane);
    if (!(self.mask >> (t - warp) & 1)) return fail("a lane calls a warp operation whose mask leaves it out", self);
    if (group.back() >= machine.threads) return fail("a mask names lanes that the block does not have", self);
  }
  for (unsigned member : group) {
    const Fiber& other = machine.fibers[member];
    if (other.state != Fiber::kWaiting || other.line != self.line || other.mask != self.mask ||
        std::strcmp(other.file, self.file) != 0)
      return;
  }
  for (unsigned member : group) {
    Fiber& other = machine.fibers[member];
    if (std::find(group.begin(), group.end(), other.source) == group.end())
      return fail("a lane reads from a lane outside the mask", other);
    other.taken = machine.fibers[other.source].given;
  }
  for (unsigned member : group) machine.fibers[member].state = Fiber::kReady;
}

inline void thread_main() {
  machine.body();
  machine.fibers[machine.current].state = Fiber::kLeft;
}

inline void start(unsigned t) {
  Fiber& fiber = machine.fibers[t];
  while (machine.stacks.size() <= t) machine.stacks.emplace_back(new char[kStackBytes]);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = machine.stacks[t].get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &machine.scheduler;
  makecontext(&fiber.context, thread_main, 0);
  fiber.state = Fiber::kReady;
}

inline void resume(unsigned t) {
  machine.current = t;
  threadIdx.x = t;
  swapcontext(&machine.scheduler, &machine.fibers[t].context);
}

// Runs a warp until each of its lanes has left or waits for somebody else.
inline bool run_warp(unsigned warp) {
  const unsigned first = warp * kWarpSize;
  bool ran = false;
  for (bool again = true; again && !failure();) {
    again = false;
    for (unsigned lane : order(std::min(kWarpSize, machine.threads - first))) {
      const unsigned t = first + lane;
      if (machine.fibers[t].state != Fiber::kReady) continue;
      ran = again = true;
      resume(t);
      if (machine.fibers[t].state == Fiber::kWaiting && machine.fibers[t].mask != kWholeBlock) release(t);
    }
  }
  return ran;
}

inline void run_block() {
  for (unsigned t = 0; t < machine.threads; ++t) start(t);
  for (bool ran = true; ran && !failure();) {
    ran = false;
    for (unsigned warp : order((machine.threads + kWarpSize - 1) / kWarpSize)) ran |= run_warp(warp);
    // The warps have nothing left to do before the next barrier of the block.
    if (machine.fibers[0].state == Fiber::kWaiting && machine.fibers[0].mask == kWholeBlock) release(0);
  }
  for (unsigned t = 0; t < machine.threads; ++t)
    if (machine.fibers[t].state == Fiber::kWaiting)
      fail("a barrier or warp operation was not reached by all of its threads", machine.fibers[t]);
}

inline void launch(unsigned grid, unsigned block, size_t shared_bytes, std::function<void()> body) {
  if (failure()) return;
  machine.threads = block;
  machine.body = std::move(body);
  machine.shared = std::vector<unsigned char>(shared_bytes, 0xff);  // doubles and floats of these bytes are NaN
  machine.shared.shrink_to_fit();
  gridDim.x = grid, blockDim.x = block;
  if (grid == 0 || block == 0 || block > kMaxThreads) {
    machine.failure = "a launch needs blocks, of 1 to 1024 threads";
    return;
  }
  for (unsigned b : order(grid)) {
    blockIdx.x = b;
    std::fill(machine.shared.begin(), machine.shared.end(), 0xff);
    run_block();
    if (failure()) return;
  }
}

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(const char* file, int line, unsigned mask, T value, unsigned source_lane) {
  const unsigned source = machine.current / kWarpSize * kWarpSize + source_lane % kWarpSize;
  const uint64_t bits = meet(file, line, mask, pack(value), source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int any_of_block(const char* file, int line, bool value) {
  static int count;  // of threads for which it holds; a barrier on either side keeps calls apart
  meet(file, line, kWholeBlock, 0, machine.current);
  if (machine.current == 0) count = 0;
  meet(file, line, kWholeBlock, 0, machine.current);
  count += value;
  meet(file, line, kWholeBlock, 0, machine.current);
  return count != 0;
}

}  // namespace emulation

// ---------------------------------------------------------------------------------------------------------------------
// What kernels call

#define __syncthreads() \
  ((void)emulation::meet(__FILE__, __LINE__, emulation::kWholeBlock, 0, emulation::machine.current))
#define __syncthreads_or(value) emulation::any_of_block(__FILE__, __LINE__, (value) != 0)
#define __syncwarp() ((void)emulation::meet(__FILE__, __LINE__, 0xffffffffu, 0, emulation::machine.current))
#define __shfl_sync(mask, value, lane) emulation::shuffle(__FILE__, __LINE__, mask, value, lane)
#define __shfl_xor_sync(mask, value, offset) \
  emulation::shuffle(__FILE__, __LINE__, mask, value, (threadIdx.x % 32) ^ (offset))

inline void __threadfence() {}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline unsigned atomicAdd(unsigned* p, unsigned value) { return std::exchange(*p, *p + value); }
