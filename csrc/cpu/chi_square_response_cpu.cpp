#include <torch/csrc/stable/library.h>

#include <vector>

#include "chi_square_response.h"
#include "cpu/dtype.h"

namespace hrrl {

Tensor chi_square_response_cpu(const Tensor& concept_loss, const Tensor& q0, double lam, double rho,
                               double max_weight) {
  const ChiSquareResponse r = prepare_chi_square_response(concept_loss, q0, lam, rho, max_weight);
  std::vector<double> scratch(static_cast<size_t>(cpu::chi_square_scratch(r.size)));
  cpu::kernels().chi_square_response({r.concept_loss.data_ptr(), r.q0.data_ptr(), r.out.data_ptr(),
                                      dtype_of(r.concept_loss), dtype_of(r.q0), r.size, r.game},
                                     scratch.data());
  return r.out;
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("chi_square_response", TORCH_BOX(&hrrl::chi_square_response_cpu));
}
