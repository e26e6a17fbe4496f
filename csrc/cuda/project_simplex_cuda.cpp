#include <torch/csrc/stable/library.h>

#include "cuda/reals.h"
#include "cuda/stream.h"
#include "project_simplex.h"

namespace hrrl {

Tensor project_simplex_cuda(const Tensor& v, double radius) {
  const ProjectSimplex p = prepare_project_simplex(v, radius);
  if (p.rows > 0) {
    const Tensor workspace = new_empty(p.v, {cuda::simplex_workspace(p.rows, p.size)}, ScalarType::Double);
    const cuda::ProjectSimplexParams params{cuda::reals(p.v), cuda::mutable_reals(p.out),
                                            p.rows,           p.size,
                                            p.radius,         static_cast<double*>(workspace.data_ptr())};
    const CurrentStream stream(p.v);
    cuda::launch_project_simplex(params, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return p.out;
}

Tensor project_simplex_backward_cuda(const Tensor& p, const Tensor& grad) {
  const ProjectSimplexBackward b = prepare_project_simplex_backward(p, grad);
  if (b.rows > 0) {
    const CurrentStream stream(b.p);  // before the workspace: its size depends on the device
    const Dtype dtype = dtype_of(b.p);
    cuda::ProjectSimplexBackwardParams params{b.p.data_ptr(), b.grad.data_ptr(), b.out.data_ptr(), b.rows, b.size,
                                              nullptr};
    const Tensor workspace =
        new_empty(b.p, {cuda::project_simplex_backward_workspace(dtype, params)}, ScalarType::Double);
    params.workspace = static_cast<double*>(workspace.data_ptr());
    cuda::launch_project_simplex_backward(dtype, params, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return b.out;
}

Tensor update_distribution_cuda(const Tensor& q, const Tensor& concept_loss, const Tensor& q0, double eta, double lam,
                                const std::optional<Tensor>& eta_scale) {
  const UpdateDistribution u = prepare_update_distribution(q, concept_loss, q0, eta, lam, eta_scale);
  const Tensor workspace = new_empty(u.q, {cuda::simplex_workspace(1, u.size)}, ScalarType::Double);
  const cuda::UpdateDistributionParams params{
      cuda::reals(u.q),
      cuda::reals(u.concept_loss),
      cuda::reals(u.q0),
      u.eta_scale ? static_cast<const double*>(u.eta_scale->data_ptr()) : nullptr,
      cuda::mutable_reals(u.out),
      u.size,
      u.eta,
      u.lam,
      static_cast<double*>(workspace.data_ptr())};
  const CurrentStream stream(u.q);
  cuda::launch_update_distribution(params, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return u.out;
}

void step_distribution_cuda(const Tensor& q, const Tensor& t, const Tensor& concept_loss, const Tensor& q0,
                            const Tensor& c, double lam, int64_t s) {
  const StepDistribution d = prepare_step_distribution(q, t, concept_loss, q0, c, lam, s);
  const Tensor workspace = new_empty(d.q, {cuda::simplex_workspace(1, d.size)}, ScalarType::Double);
  const cuda::UpdateDistributionParams params{cuda::reals(d.q),
                                              cuda::reals(d.concept_loss),
                                              cuda::reals(d.q0),
                                              nullptr,
                                              cuda::mutable_reals(d.q),
                                              d.size,
                                              1.0,
                                              d.lam,
                                              static_cast<double*>(workspace.data_ptr())};
  const CurrentStream stream(d.q);
  cuda::launch_step_distribution(params, {static_cast<int64_t*>(d.t.data_ptr()), cuda::reals(d.c), d.s}, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) {
  m.impl("project_simplex", TORCH_BOX(&hrrl::project_simplex_cuda));
  m.impl("project_simplex_backward", TORCH_BOX(&hrrl::project_simplex_backward_cuda));
  m.impl("update_distribution", TORCH_BOX(&hrrl::update_distribution_cuda));
  m.impl("step_distribution", TORCH_BOX(&hrrl::step_distribution_cuda));
}
