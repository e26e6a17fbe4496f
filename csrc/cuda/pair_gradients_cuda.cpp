#include <torch/csrc/stable/library.h>

#include "cuda/reals.h"
#include "cuda/stream.h"
#include "pair_gradients.h"

namespace hrrl {

std::tuple<Tensor, Tensor> pair_gradients_cuda(const Tensor& image, const Tensor& caption, const Tensor& row,
                                               const Tensor& column, const Tensor& weight, bool order) {
  const PairGradients p = prepare_pair_gradients(image, caption, row, column, weight);
  if (p.images + p.captions > 0) {
    const Tensor scale = new_empty(p.image, {order ? p.pairs : 0}, ScalarType::Double);
    const cuda::PairParams params{p.image.data_ptr(),
                                  p.caption.data_ptr(),
                                  static_cast<const int64_t*>(p.row.data_ptr()),
                                  static_cast<const int64_t*>(p.column.data_ptr()),
                                  cuda::reals(p.weight),
                                  cuda::mutable_reals(p.grad_image),
                                  cuda::mutable_reals(p.grad_caption),
                                  p.images,
                                  p.captions,
                                  p.size,
                                  p.pairs,
                                  order,
                                  static_cast<double*>(scale.data_ptr())};
    const CurrentStream stream(p.image);
    cuda::launch_pair_gradients(dtype_of(p.image), params, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {p.grad_image, p.grad_caption};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) { m.impl("pair_gradients", TORCH_BOX(&hrrl::pair_gradients_cuda)); }
