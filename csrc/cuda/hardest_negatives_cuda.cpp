#include <torch/csrc/stable/library.h>

#include "cuda/reals.h"
#include "cuda/stream.h"
#include "hardest_negatives.h"

namespace hrrl {

std::tuple<Tensor, Tensor, Tensor, Tensor> hardest_negatives_cuda(const Tensor& image, const Tensor& caption,
                                                                  const Tensor& image_group,
                                                                  const Tensor& caption_group, bool order) {
  const HardestNegatives h =
      prepare_hardest_negatives("hardest_negatives: ", image, caption, image_group, caption_group);
  if (h.images + h.captions > 0) {
    const int64_t workspace = cuda::hardest_workspace(h.images, h.captions);
    const Tensor scores = new_empty(h.image, {workspace}, ScalarType::Double);
    const Tensor indices = new_empty(h.image, {workspace}, ScalarType::Long);
    const auto ids = [](const Tensor& t) { return static_cast<int64_t*>(t.data_ptr()); };
    const cuda::HardestParams params{h.image.data_ptr(),
                                     h.caption.data_ptr(),
                                     ids(h.image_group),
                                     ids(h.caption_group),
                                     ids(h.caption_index),
                                     ids(h.image_index),
                                     cuda::mutable_reals(h.caption_score),
                                     cuda::mutable_reals(h.image_score),
                                     h.images,
                                     h.captions,
                                     h.size,
                                     order,
                                     static_cast<double*>(scores.data_ptr()),
                                     ids(indices)};
    const CurrentStream stream(h.image);
    cuda::launch_hardest_negatives(dtype_of(h.image), params, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {h.caption_index, h.caption_score, h.image_index, h.image_score};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) { m.impl("hardest_negatives", TORCH_BOX(&hrrl::hardest_negatives_cuda)); }
