#include <torch/csrc/stable/library.h>

#include "common/dtype.h"
#include "cuda/launch.h"
#include "cuda/stream.h"
#include "rank1.h"

namespace hrrl {

static double* doubles(const Tensor& t) { return static_cast<double*>(t.data_ptr()); }

void rank1_dot_cuda(const Tensor& cross, const Tensor& p, const Tensor& q) {
  const Rank1Dot d = prepare_rank1_dot(cross, p, q);
  if (d.empty()) return;
  const cuda::Rank1DotParams params{doubles(d.cross), d.p.data_ptr(), d.q.data_ptr(), d.batch,
                                    d.groups,         d.clusters,     d.size};
  const CurrentStream stream(d.p);
  cuda::launch_rank1_dot(dtype_of(d.p), params, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor, Tensor> rank1_argmin_cuda(const Tensor& cross, const Tensor& square,
                                                     const Tensor& centre_square, const Tensor& weight, double rtol) {
  const Rank1Argmin a = prepare_rank1_argmin(cross, square, centre_square, weight, rtol);
  if (a.batch > 0) {
    const cuda::Rank1ArgminParams params{doubles(a.cross),
                                         doubles(a.square),
                                         doubles(a.centre_square),
                                         doubles(a.weight),
                                         static_cast<int64_t*>(a.assignment.data_ptr()),
                                         doubles(a.distance),
                                         doubles(a.gap),
                                         a.batch,
                                         a.clusters,
                                         a.rtol};
    const CurrentStream stream(a.cross);
    cuda::launch_rank1_argmin(params, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {a.assignment, a.distance, a.gap};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) {
  m.impl("rank1_dot", TORCH_BOX(&hrrl::rank1_dot_cuda));
  m.impl("rank1_argmin", TORCH_BOX(&hrrl::rank1_argmin_cuda));
}
