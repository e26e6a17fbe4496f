#include <torch/csrc/stable/library.h>

#include <vector>

#include "cpu/dtype.h"
#include "math/simplex.h"
#include "project_simplex.h"

namespace hrrl {

namespace {

template <class in_t, class out_t>
void project(const in_t* v, out_t* out, int64_t size, double radius) {
  const SimplexThreshold t = simplex_threshold(v, size, radius);
  for (int64_t j = 0; j < size; ++j) {
    const double p = (static_cast<double>(v[j]) - t.max) - t.nu;
    out[j] = static_cast<out_t>(p < 0.0 ? 0.0 : p);  // keeps NaN
  }
}

}  // namespace

Tensor project_simplex_cpu(const Tensor& v, double radius) {
  const ProjectSimplex p = prepare_project_simplex(v, radius);
  cpu::visit(p.out, [&](auto* out) {
    const auto* in = static_cast<decltype(out)>(p.v.data_ptr());
    torch::stable::parallel_for(0, p.rows, cpu::grain(8 * p.size), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) project(in + row * p.size, out + row * p.size, p.size, p.radius);
    });
  });
  return p.out;
}

Tensor update_distribution_cpu(const Tensor& q, const Tensor& concept_loss, const Tensor& q0, double eta, double lam,
                               const std::optional<Tensor>& eta_scale) {
  const UpdateDistribution u = prepare_update_distribution(q, concept_loss, q0, eta, lam, eta_scale);
  const cpu::Doubles q_t(u.q), gain(u.concept_loss), anchor(u.q0);
  const double step = u.eta_scale ? eta * *static_cast<const double*>(u.eta_scale->data_ptr()) : eta;
  std::vector<double> ascended(static_cast<size_t>(u.size));
  for (int64_t k = 0; k < u.size; ++k) ascended[k] = q_t[k] + step * (gain[k] - lam * (q_t[k] - anchor[k]));
  cpu::visit(u.out, [&](auto* out) { project(ascended.data(), out, u.size, 1.0); });
  return u.out;
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("project_simplex", TORCH_BOX(&hrrl::project_simplex_cpu));
  m.impl("update_distribution", TORCH_BOX(&hrrl::update_distribution_cpu));
}
