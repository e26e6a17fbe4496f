// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/perturb.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_perturb(int dtype, const void* x, const void* grad, void* out, void* norm,
                                       const double* tau_scale, double tau, int64_t batch, int64_t size) {
  const Workspace workspace(cuda::perturb_workspace(static_cast<Dtype>(dtype), batch, size));
  cuda::launch_perturb(static_cast<Dtype>(dtype), {x, grad, out, norm, tau_scale, tau, batch, size, workspace.data()},
                       nullptr);
  return emulation::failure();
}
