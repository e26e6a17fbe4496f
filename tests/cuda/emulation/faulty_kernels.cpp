// Kernels that break CUDA's rules, for the test that the emulation says so.
#include "cuda_emulation.h"
#include "entry.h"

namespace {

using Body = void (*)();

void sync_cluster() { emulation::sync_cluster(__FILE__, __LINE__); }
int* own_shared() { return static_cast<int*>(emulation::dynamic_shared()); }
int shared_of(unsigned rank) { return *static_cast<const int*>(emulation::in_block(own_shared(), rank)); }

const Body kBodies[] = {
    [] {  // half of the warps never come
      if (threadIdx.x < 32) __syncthreads();
    },
    [] {  // two barriers take each other for one
      if (threadIdx.x % 2)
        __syncthreads();
      else
        __syncthreads();
    },
    [] {  // lane 5 has left
      if (threadIdx.x == 5) return;
      __shfl_xor_sync(0xffffffffu, 1, 1);
    },
    [] {  // the caller is not in its own mask
      if (threadIdx.x == 0) __shfl_sync(0xeu, 1, 1);
    },
    [] {  // lane 8 is outside the mask that reads from it
      if (threadIdx.x < 8) __shfl_sync(0xffu, 1, 8);
    },
    [] {  // some lanes wait for the block, the others for the warp
      if (threadIdx.x < 16)
        __syncwarp();
      else
        __syncthreads();
    },
};

const Body kClusterBodies[] = {
    // run by two blocks
    [] {  // one block never comes
      if (blockIdx.x == 0) sync_cluster();
    },
    [] {  // the other block has not begun, or has left
      shared_of(1 - blockIdx.x);
    },
    [] {  // the other block leaves too early
      *own_shared() = 1;
      sync_cluster();
      if (blockIdx.x == 0) return;
      shared_of(1 - blockIdx.x);
    },
    [] {  // there is no third block
      sync_cluster();
      shared_of(2);
      sync_cluster();
    },
    [] {  // a write beyond what the launch asked for
      own_shared()[1] = 1;
    },
    [] {  // a barrier of the grid, in an ordinary launch
      emulation::sync_grid(__FILE__, __LINE__);
    },
};

}  // namespace

extern "C" const char* run_fault(int fault) {
  emulation::launch({1, 64}, kBodies[fault]);
  return emulation::failure();
}

extern "C" const char* run_cluster_fault(int fault) {
  emulation::launch({4, 32, sizeof(int), 2}, kClusterBodies[fault]);
  return emulation::failure();
}

extern "C" const char* run_shape(unsigned grid, unsigned block, unsigned cluster, int cooperative) {
  emulation::launch({grid, block, 0, cluster, cooperative != 0}, [] {});
  return emulation::failure();
}

// Sum over a block without and with the barrier that it needs: out[0] and out[1].
extern "C" const char* sum_with_race(int* out) {
  emulation::launch({1, 64}, [out] {
    __shared__ int partial[64];
    partial[threadIdx.x] = 0;
    __syncthreads();
    partial[threadIdx.x] = 1;
    int sum = 0;
    for (unsigned t = 0; t < 64; ++t) sum += partial[t];
    if (threadIdx.x == 0) out[0] = sum;
    __syncthreads();
    sum = 0;
    for (unsigned t = 0; t < 64; ++t) sum += partial[t];
    if (threadIdx.x == 0) out[1] = sum;
  });
  return emulation::failure();
}

// Blocks of a cluster have static shared memory of their own, and see each other's dynamic one after the barrier:
// out[b] = 10 b + the rank of the block before.
extern "C" const char* pass_on(int* out) {
  emulation::launch({4, 64, sizeof(int), 4}, [out] {
    __shared__ int own;
    if (threadIdx.x == 0) own = *own_shared() = static_cast<int>(blockIdx.x);
    sync_cluster();
    if (threadIdx.x == 0) out[blockIdx.x] = 10 * own + shared_of((blockIdx.x + 3) % 4);
    sync_cluster();
  });
  return emulation::failure();
}
