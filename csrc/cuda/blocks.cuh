// Blocks that work on one row together: the barriers of a cluster and of the grid, and what they exchange there.
#pragma once

#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif

#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"

namespace hrrl::cuda {

// Clusters are neighbours in the grid: the rank of a block in its cluster of n is blockIdx.x % n.
constexpr int kClusterBlocks = 8;  // what every device with clusters can do

// Waits for all threads of the cluster; what they wrote before is seen by all of them after. Compiled for architectures
// without clusters this is the barrier of the block: launchers ask runs_in_clusters() before they launch any.
__device__ inline void sync_cluster() {
#if !defined(__CUDACC__)
  emulation::architecture() >= 90 ? emulation::sync_cluster(__FILE__, __LINE__) : __syncthreads();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __syncthreads();
#endif
}

// That barrier in two halves: what stands between them is not held up, nor has anybody seen it after. The first is for
// a block that has read what others wrote, the second for one that is about to leave.
__device__ inline void arrive_at_cluster() {
#if !defined(__CUDACC__)
  if (emulation::architecture() >= 90) emulation::arrive_at_cluster();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ inline void wait_for_cluster() {
#if !defined(__CUDACC__)
  if (emulation::architecture() >= 90) emulation::wait_for_cluster(__FILE__, __LINE__);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// `own`, in the dynamic shared memory of this block, as block `rank` of the cluster has it. That block must have come
// to a barrier, and must not leave the kernel before another.
template <class T>
__device__ const T* in_block(const T* own, [[maybe_unused]] int rank) {
#if !defined(__CUDACC__)
  if (emulation::architecture() < 90) return own;
  return static_cast<const T*>(emulation::in_block(own, static_cast<unsigned>(rank)));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(const_cast<T*>(own), static_cast<unsigned>(rank));
#else
  return own;
#endif
}

// The same for all threads of the grid and for global memory. Grids of one block need no cooperative launch.
__device__ inline void sync_grid() {
  if (gridDim.x == 1) {
    __syncthreads();
  } else {
#ifdef __CUDACC__
    cooperative_groups::this_grid().sync();
#else
    emulation::sync_grid(__FILE__, __LINE__);
#endif
  }
}

// op over at(0), ..., at(count - 1), by every warp for itself: the same bits in all of them, whoever calls it.
template <class T, class Op, class At>
__device__ T combine(int64_t count, T neutral, Op op, At at) {
  T value = neutral;
#pragma unroll 4
  for (int64_t i = threadIdx.x % kWarpSize; i < count; i += kWarpSize) value = op(value, at(i));
  return LaneTeam<kWarpSize>::reduce(value, op);
}

// ---------------------------------------------------------------------------------------------------------------------
// Who works on a row. all(value, neutral, op) combines a value of every block, the same bits in all their threads.
// Values take turns in two slots: at the next but one everybody has read the first, for there was a barrier between.
// A value is two doubles long. A cluster has its slots where its dynamic shared memory begins, a grid in a workspace.
constexpr int64_t kSlots = 4;  // doubles, for every block

struct OneBlock {
  static constexpr bool kAlone = true;
  __device__ int64_t first_row() const { return blockIdx.x; }
  __device__ int64_t row_step() const { return gridDim.x; }
  __device__ int rank() const { return 0; }
  __device__ int size() const { return 1; }
  template <class T, class Op>
  __device__ T all(T value, T, Op) {
    return value;
  }
  __device__ void finish() const {}
};

struct ClusterOfBlocks {
  static constexpr bool kAlone = false;
  int turn = 0;
  __device__ int64_t first_row() const { return blockIdx.x / kClusterBlocks; }
  __device__ int64_t row_step() const { return gridDim.x / kClusterBlocks; }
  __device__ int rank() const { return static_cast<int>(blockIdx.x % kClusterBlocks); }
  __device__ int size() const { return kClusterBlocks; }
  template <class T, class Op>
  __device__ T all(T value, T neutral, Op op) {
    static_assert(2 * sizeof(T) == kSlots * sizeof(double), "two slots");
    T* slot = dynamic_shared<T>() + turn;
    turn ^= 1;
    if (threadIdx.x == 0) *slot = value;
    sync_cluster();
    return combine(kClusterBlocks, neutral, op, [&](int64_t b) { return *in_block(slot, static_cast<int>(b)); });
  }
  __device__ void finish() const { sync_cluster(); }  // nobody reads from a block that has left
};

struct GridOfBlocks {
  static constexpr bool kAlone = false;
  double* workspace;  // [2, gridDim.x] values
  int turn = 0;
  __device__ int64_t first_row() const { return 0; }
  __device__ int64_t row_step() const { return 1; }
  __device__ int rank() const { return static_cast<int>(blockIdx.x); }
  __device__ int size() const { return static_cast<int>(gridDim.x); }
  template <class T, class Op>
  __device__ T all(T value, T neutral, Op op) {
    static_assert(2 * sizeof(T) == kSlots * sizeof(double), "two slots");
    T* slots = reinterpret_cast<T*>(workspace) + turn * size();
    turn ^= 1;
    if (threadIdx.x == 0) slots[rank()] = value;
    sync_grid();
    return combine(size(), neutral, op, [&](int64_t b) { return slots[b]; });
  }
  __device__ void finish() const {}
};

}  // namespace hrrl::cuda
