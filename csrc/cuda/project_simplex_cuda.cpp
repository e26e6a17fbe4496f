#include <torch/csrc/stable/library.h>

#include "common/dtype.h"
#include "cuda/launch.h"
#include "cuda/stream.h"
#include "project_simplex.h"

namespace hrrl {

Tensor project_simplex_cuda(const Tensor& v, double radius) {
  const ProjectSimplex p = prepare_project_simplex(v, radius);
  if (p.rows > 0) {
    const CurrentStream stream(p.v);
    cuda::launch_project_simplex(dtype_of(p.v), p.v.data_ptr(), p.out.data_ptr(), p.rows, p.size, p.radius, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return p.out;
}

Tensor update_distribution_cuda(const Tensor& q, const Tensor& concept_loss, const Tensor& q0, double eta, double lam,
                                const std::optional<Tensor>& eta_scale) {
  const UpdateDistribution u = prepare_update_distribution(q, concept_loss, q0, eta, lam, eta_scale);
  const Tensor q_double = as_double(u.q), gain = as_double(u.concept_loss), anchor = as_double(u.q0);
  const Tensor out = new_empty(u.q, {u.size}, ScalarType::Double);
  const cuda::UpdateDistributionParams params{
      static_cast<const double*>(q_double.data_ptr()),
      static_cast<const double*>(gain.data_ptr()),
      static_cast<const double*>(anchor.data_ptr()),
      u.eta_scale ? static_cast<const double*>(u.eta_scale->data_ptr()) : nullptr,
      static_cast<double*>(out.data_ptr()),
      u.size,
      u.eta,
      u.lam};
  {
    const CurrentStream stream(u.q);
    cuda::launch_update_distribution(params, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return as_type(out, u.q.scalar_type());
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) {
  m.impl("project_simplex", TORCH_BOX(&hrrl::project_simplex_cuda));
  m.impl("update_distribution", TORCH_BOX(&hrrl::update_distribution_cuda));
}
