// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/rank1.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_rank1_dot(int dtype, double* cross, const void* p, const void* q, int64_t batch,
                                         int64_t groups, int64_t clusters, int64_t size) {
  cuda::launch_rank1_dot(static_cast<Dtype>(dtype), {cross, p, q, batch, groups, clusters, size}, nullptr);
  return emulation::failure();
}

extern "C" const char* emulate_rank1_argmin(const double* cross, const double* square, const double* centre_square,
                                            const double* weight, int64_t* assignment, double* distance, double* gap,
                                            int64_t batch, int64_t clusters, double rtol) {
  cuda::launch_rank1_argmin({cross, square, centre_square, weight, assignment, distance, gap, batch, clusters, rtol},
                            nullptr);
  return emulation::failure();
}
