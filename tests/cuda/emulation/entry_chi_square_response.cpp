// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/chi_square_response.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_chi_square_response(int loss_dtype, const void* concept_loss, int q0_dtype,
                                                   const void* q0, void* out, int64_t size, double lam, double rho,
                                                   double max_weight) {
  const auto q0_type = static_cast<Dtype>(q0_dtype);
  const Workspace workspace(cuda::chi_square_workspace(size));
  cuda::launch_chi_square_response({{concept_loss, static_cast<Dtype>(loss_dtype)},
                                    {q0, q0_type},
                                    {out, q0_type},
                                    size,
                                    {lam, rho, max_weight},
                                    workspace.data()},
                                   nullptr);
  return emulation::failure();
}
