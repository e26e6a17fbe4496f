#include <torch/csrc/stable/library.h>

#include "cuda/reals.h"
#include "cuda/stream.h"
#include "hinge_coefficients.h"

namespace hrrl {

std::tuple<Tensor, Tensor, Tensor, Tensor> hinge_coefficients_cuda(
    const Tensor& image, const Tensor& caption, const Tensor& image_below, const Tensor& caption_below,
    const Tensor& image_weight, const Tensor& caption_weight, const Tensor& image_group, const Tensor& caption_group) {
  const HingeCoefficients h = prepare_hinge_coefficients(image, caption, image_below, caption_below, image_weight,
                                                         caption_weight, image_group, caption_group);
  const Tensor sums = new_empty(h.image, {cuda::hinge_workspace(h.images, h.captions)}, ScalarType::Double);
  const cuda::HingeParams params{h.image.data_ptr(),
                                 h.caption.data_ptr(),
                                 static_cast<const int64_t*>(h.image_group.data_ptr()),
                                 static_cast<const int64_t*>(h.caption_group.data_ptr()),
                                 cuda::reals(h.image_below),
                                 cuda::reals(h.caption_below),
                                 cuda::reals(h.image_weight),
                                 cuda::reals(h.caption_weight),
                                 cuda::mutable_reals(h.loss),
                                 cuda::mutable_reals(h.coefficient),
                                 cuda::mutable_reals(h.of_image),
                                 cuda::mutable_reals(h.of_caption),
                                 h.images,
                                 h.captions,
                                 h.size,
                                 static_cast<double*>(sums.data_ptr())};
  const CurrentStream stream(h.image);
  cuda::launch_hinge_coefficients(dtype_of(h.image), params, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {h.loss, h.coefficient, h.of_image, h.of_caption};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) {
  m.impl("hinge_coefficients", TORCH_BOX(&hrrl::hinge_coefficients_cuda));
}
