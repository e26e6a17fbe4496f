#include <torch/csrc/stable/library.h>

#include "common/dtype.h"
#include "cuda/launch.h"
#include "cuda/stream.h"
#include "perturb.h"

namespace hrrl {

std::tuple<Tensor, Tensor> perturb_cuda(const Tensor& x, const Tensor& grad, double tau,
                                        const std::optional<Tensor>& tau_scale) {
  Perturb p = prepare_perturb(x, grad, tau, tau_scale);
  if (p.batch > 0) {
    const CurrentStream stream(p.x);  // before the workspace: its size depends on the device
    const Dtype dtype = dtype_of(p.x);
    const Tensor workspace = new_empty(p.x, {cuda::perturb_workspace(dtype, p.batch, p.size)}, ScalarType::Double);
    const cuda::PerturbParams params{p.x.data_ptr(),
                                     p.grad.data_ptr(),
                                     p.out.data_ptr(),
                                     p.norm.data_ptr(),
                                     p.tau_scale ? static_cast<const double*>(p.tau_scale->data_ptr()) : nullptr,
                                     tau,
                                     p.batch,
                                     p.size,
                                     workspace.data_ptr()};
    cuda::launch_perturb(dtype, params, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  p.finish();
  return {p.x_perturbed, p.norm};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) { m.impl("perturb", TORCH_BOX(&hrrl::perturb_cuda)); }
