// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/project_simplex.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_project_simplex(int dtype, const void* v, void* out, int64_t rows, int64_t size,
                                               double radius) {
  const auto type = static_cast<Dtype>(dtype);
  const Workspace workspace(cuda::simplex_workspace(rows, size));
  cuda::launch_project_simplex({{v, type}, {out, type}, rows, size, radius, workspace.data()}, nullptr);
  return emulation::failure();
}

// A step, and q is both, where there is a counter t.
extern "C" const char* emulate_update_distribution(int q_dtype, const void* q, int loss_dtype, const void* concept_loss,
                                                   int q0_dtype, const void* q0, const double* eta_scale, void* out,
                                                   int64_t size, double eta, double lam, int64_t* t, int c_dtype,
                                                   const void* c, int64_t s) {
  const auto reals = [](int dtype, const void* data) { return cuda::Reals{data, static_cast<Dtype>(dtype)}; };
  const Workspace workspace(cuda::simplex_workspace(1, size));
  const cuda::UpdateDistributionParams params{reals(q_dtype, q),
                                              reals(loss_dtype, concept_loss),
                                              reals(q0_dtype, q0),
                                              eta_scale,
                                              {out, static_cast<Dtype>(q_dtype)},
                                              size,
                                              eta,
                                              lam,
                                              workspace.data()};
  if (t)
    cuda::launch_step_distribution(params, {t, reals(c_dtype, c), s}, nullptr);
  else
    cuda::launch_update_distribution(params, nullptr);
  return emulation::failure();
}
