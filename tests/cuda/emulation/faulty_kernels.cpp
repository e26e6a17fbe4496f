// Kernels that break CUDA's rules, for the test that the emulation says so.
#include "cuda_emulation.h"
#include "entry.h"

namespace {

using Body = void (*)();

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

}  // namespace

extern "C" int number_of_faults() { return sizeof(kBodies) / sizeof(kBodies[0]); }

extern "C" const char* run_fault(int fault) {
  emulation::launch(1, 64, 0, kBodies[fault]);
  return emulation::failure();
}

// Sum over a block without and with the barrier that it needs: out[0] and out[1].
extern "C" const char* sum_with_race(int* out) {
  emulation::launch(1, 64, 0, [out] {
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
