// clang-format off: the kernels need what the emulation declares
#include "cuda_emulation.h"
#include "cuda/project_simplex.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_project_simplex(int dtype, const void* v, void* out, int64_t rows, int64_t size,
                                               double radius) {
  cuda::launch_project_simplex(static_cast<Dtype>(dtype), v, out, rows, size, radius, nullptr);
  return emulation::failure();
}

extern "C" const char* emulate_update_distribution(const double* q, const double* concept_loss, const double* q0,
                                                   const double* eta_scale, double* out, int64_t size, double eta,
                                                   double lam) {
  cuda::launch_update_distribution({q, concept_loss, q0, eta_scale, out, size, eta, lam}, nullptr);
  return emulation::failure();
}
