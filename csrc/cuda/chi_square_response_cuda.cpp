#include <torch/csrc/stable/library.h>

#include "chi_square_response.h"
#include "cuda/reals.h"
#include "cuda/stream.h"

namespace hrrl {

Tensor chi_square_response_cuda(const Tensor& concept_loss, const Tensor& q0, double lam, double rho,
                                double max_weight) {
  const ChiSquareResponse r = prepare_chi_square_response(concept_loss, q0, lam, rho, max_weight);
  const Tensor workspace = new_empty(r.q0, {cuda::chi_square_workspace(r.size)}, ScalarType::Double);
  const cuda::ChiSquareParams params{cuda::reals(r.concept_loss),
                                     cuda::reals(r.q0),
                                     cuda::mutable_reals(r.out),
                                     r.size,
                                     r.game,
                                     static_cast<double*>(workspace.data_ptr())};
  const CurrentStream stream(r.q0);
  cuda::launch_chi_square_response(params, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return r.out;
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) {
  m.impl("chi_square_response", TORCH_BOX(&hrrl::chi_square_response_cuda));
}
