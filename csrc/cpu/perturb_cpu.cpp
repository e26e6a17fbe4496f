#include <torch/csrc/stable/library.h>

#include "cpu/dtype.h"
#include "perturb.h"

namespace hrrl {

std::tuple<Tensor, Tensor> perturb_cpu(const Tensor& x, const Tensor& grad, double tau,
                                       const std::optional<Tensor>& tau_scale) {
  Perturb p = prepare_perturb(x, grad, tau, tau_scale);
  const cpu::PerturbArgs args{p.x.data_ptr(),
                              p.grad.data_ptr(),
                              p.out.data_ptr(),
                              p.norm.data_ptr(),
                              p.tau_scale ? static_cast<const double*>(p.tau_scale->data_ptr()) : nullptr,
                              tau,
                              p.size};
  const cpu::Dtype dtype = cpu::dtype_of(p.x);
  const auto kernel = cpu::kernels().perturb;
  cpu::parallel_rows(p.batch, p.size, [&](int64_t begin, int64_t end) { kernel(dtype, args, begin, end); });
  p.finish();
  return {p.x_perturbed, p.norm};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) { m.impl("perturb", TORCH_BOX(&hrrl::perturb_cpu)); }
