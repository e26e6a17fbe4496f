#include <torch/csrc/stable/library.h>

#include "cpu/dtype.h"
#include "rank1.h"

namespace hrrl {

void rank1_dot_cpu(const Tensor& cross, const Tensor& p, const Tensor& q) {
  const Rank1Dot d = prepare_rank1_dot(cross, p, q);
  if (d.empty()) return;
  const cpu::Rank1DotArgs args{d.p.data_ptr(), d.q.data_ptr(), static_cast<double*>(d.cross.data_ptr()),
                               d.groups,       d.clusters,     d.size};
  const cpu::Dtype dtype = cpu::dtype_of(d.p);
  const auto kernel = cpu::kernels().rank1_dot;
  cpu::parallel_rows(d.batch, d.groups * d.clusters * d.size,
                     [&](int64_t begin, int64_t end) { kernel(dtype, args, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor> rank1_argmin_cpu(const Tensor& cross, const Tensor& square,
                                                    const Tensor& centre_square, const Tensor& weight, double rtol) {
  const Rank1Argmin a = prepare_rank1_argmin(cross, square, centre_square, weight, rtol);
  const auto doubles = [](const Tensor& t) { return static_cast<double*>(t.data_ptr()); };
  const cpu::Rank1ArgminArgs args{doubles(a.cross),
                                  doubles(a.square),
                                  doubles(a.centre_square),
                                  doubles(a.weight),
                                  static_cast<int64_t*>(a.assignment.data_ptr()),
                                  doubles(a.distance),
                                  doubles(a.gap),
                                  a.clusters,
                                  a.rtol};
  const auto kernel = cpu::kernels().rank1_argmin;
  cpu::parallel_rows(a.batch, 2 * a.clusters, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {a.assignment, a.distance, a.gap};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("rank1_dot", TORCH_BOX(&hrrl::rank1_dot_cpu));
  m.impl("rank1_argmin", TORCH_BOX(&hrrl::rank1_argmin_cpu));
}
