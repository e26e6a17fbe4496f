#include <torch/csrc/stable/library.h>

#include <vector>

#include "cpu/dtype.h"
#include "project_simplex.h"

namespace hrrl {

static int64_t blocks(int64_t size) { return (size + cpu::kSimplexBlock - 1) / cpu::kSimplexBlock; }

Tensor project_simplex_cpu(const Tensor& v, double radius) {
  const ProjectSimplex p = prepare_project_simplex(v, radius);
  const Dtype dtype = dtype_of(p.v);
  const auto kernel = cpu::kernels().project_simplex;
  cpu::visit(p.out, [&](auto* out) {
    const auto* in = static_cast<decltype(out)>(p.v.data_ptr());
    cpu::parallel_rows(p.rows, 8 * p.size, [&](int64_t begin, int64_t end) {
      std::vector<double> block_max(blocks(p.size));
      for (int64_t row = begin; row < end; ++row)
        kernel(dtype, in + row * p.size, out + row * p.size, p.size, p.radius, block_max.data());
    });
  });
  return p.out;
}

Tensor project_simplex_backward_cpu(const Tensor& p, const Tensor& grad) {
  const ProjectSimplexBackward b = prepare_project_simplex_backward(p, grad);
  const auto kernel = cpu::kernels().project_simplex_backward;
  cpu::visit(b.out, [&](auto* out) {
    const auto* of_p = static_cast<decltype(out)>(b.p.data_ptr());
    const auto* of_grad = static_cast<decltype(out)>(b.grad.data_ptr());
    cpu::parallel_rows(b.rows, b.size, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin * b.size; at < end * b.size; at += b.size)
        kernel(dtype_of(b.p), of_p + at, of_grad + at, out + at, b.size);
    });
  });
  return b.out;
}

Tensor update_distribution_cpu(const Tensor& q, const Tensor& concept_loss, const Tensor& q0, double eta, double lam,
                               const std::optional<Tensor>& eta_scale) {
  const UpdateDistribution u = prepare_update_distribution(q, concept_loss, q0, eta, lam, eta_scale);
  const bool in_place = u.q.scalar_type() == ScalarType::Double;
  std::vector<double> scratch(blocks(u.size) + (in_place ? 0 : u.size));
  double* block_max = scratch.data();
  double* ascended = in_place ? static_cast<double*>(u.out.data_ptr()) : block_max + blocks(u.size);
  const cpu::UpdateArgs args{u.q.data_ptr(),
                             u.concept_loss.data_ptr(),
                             u.q0.data_ptr(),
                             u.out.data_ptr(),
                             dtype_of(u.q),
                             dtype_of(u.concept_loss),
                             dtype_of(u.q0),
                             u.size,
                             u.eta_scale ? eta * *static_cast<const double*>(u.eta_scale->data_ptr()) : eta,
                             lam,
                             false};
  cpu::kernels().update_distribution(args, ascended, block_max);
  return u.out;
}

void step_distribution_cpu(const Tensor& q, const Tensor& t, const Tensor& concept_loss, const Tensor& q0,
                           const Tensor& c, double lam, int64_t s) {
  const StepDistribution d = prepare_step_distribution(q, t, concept_loss, q0, c, lam, s);
  auto& count = *static_cast<int64_t*>(d.t.data_ptr());
  const double eta = 1.0 / (d.lam * static_cast<double>(++count));
  std::vector<double> scratch(blocks(d.size) + d.size);
  const cpu::UpdateArgs args{d.q.data_ptr(),
                             d.concept_loss.data_ptr(),
                             d.q0.data_ptr(),
                             d.q.data_ptr(),
                             dtype_of(d.q),
                             dtype_of(d.concept_loss),
                             dtype_of(d.q0),
                             d.size,
                             count <= d.s ? eta / cpu::Doubles(d.c)[0] : eta,
                             d.lam,
                             true};
  cpu::kernels().update_distribution(args, scratch.data() + blocks(d.size), scratch.data());
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("project_simplex", TORCH_BOX(&hrrl::project_simplex_cpu));
  m.impl("project_simplex_backward", TORCH_BOX(&hrrl::project_simplex_backward_cpu));
  m.impl("update_distribution", TORCH_BOX(&hrrl::update_distribution_cpu));
  m.impl("step_distribution", TORCH_BOX(&hrrl::step_distribution_cpu));
}
