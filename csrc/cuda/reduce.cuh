// Teams: the threads that share one row. A kernel is written once for `Team`, and the launcher chooses how many threads
// a row is worth: some lanes of a warp (LaneTeam) or a block (BlockTeam).
//
//   rank(), size()     this thread among the team's
//   index()            the team's number in the grid: its row
//   reduce(v, op)      op over the team's values. EVERY thread of the team must call it, and every one gets the result,
//                      the same bits in all of them. The order is a fixed butterfly: no run differs from another.
//
// op must be commutative to the bit (a + b is, and so is Max but for the sign of 0): partners in the butterfly apply it
// to the same two values, each with its own first.
#pragma once

#include <cstdint>

namespace hrrl::cuda {

constexpr int kWarpSize = 32;
constexpr int kMaxBlockSize = 1024;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {  // a NaN never wins against a number
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

struct Min {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// A struct of several values brings an overload of its own; argument-dependent lookup finds it.
template <class T>
__device__ T shuffle_xor(unsigned mask, T value, int offset) {
  return __shfl_xor_sync(mask, value, offset);
}

// kLanes neighbouring lanes of a warp. Nothing is asked of the warp's other lanes: they may have left the kernel.
template <int kLanes>
struct LaneTeam {
  static_assert(kLanes >= 1 && kLanes <= kWarpSize && (kLanes & (kLanes - 1)) == 0, "a power of two of lanes");

  static constexpr int kSize = kLanes;
  __device__ static int rank() { return static_cast<int>(threadIdx.x % kLanes); }
  __device__ static int size() { return kLanes; }
  __device__ static int64_t index() { return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes; }

  __device__ static unsigned mask() {
    const unsigned lanes = 0xffffffffu >> (kWarpSize - kLanes);
    return lanes << (threadIdx.x % kWarpSize / kLanes * kLanes);
  }

  template <class T, class Op>
  __device__ static T reduce(T value, Op op) {
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) value = op(value, shuffle_xor(mask(), value, offset));
    return value;
  }
};

// The whole block; blockDim.x must be a power of two from kWarpSize to kMaxBlockSize, and no thread may have left.
struct BlockTeam {
  __device__ static int rank() { return static_cast<int>(threadIdx.x); }
  __device__ static int size() { return static_cast<int>(blockDim.x); }
  __device__ static int64_t index() { return blockIdx.x; }

  template <class T, class Op>
  __device__ static T reduce(T value, Op op) {
    __shared__ T partial[kMaxBlockSize / kWarpSize];
    const int warps = static_cast<int>(blockDim.x) / kWarpSize;
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
    value = LaneTeam<kWarpSize>::reduce(value, op);
    if (warps == 1) return value;
    // Without the first barrier a fast warp would overwrite what a slow one still has to read from the previous call;
    // without the second, a warp would read partial results that are not there yet.
    __syncthreads();
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    // Every warp goes through the same butterfly by itself, which saves a broadcast and its barrier.
    value = partial[lane % warps];
    for (int offset = warps / 2; offset > 0; offset /= 2) value = op(value, shuffle_xor(0xffffffffu, value, offset));
    return value;
  }
};

// A block whose size is known when it is compiled.
template <int kThreads>
struct BlockOf : BlockTeam {
  static constexpr int kSize = kThreads;
  __device__ static int size() { return kThreads; }
};

}  // namespace hrrl::cuda
