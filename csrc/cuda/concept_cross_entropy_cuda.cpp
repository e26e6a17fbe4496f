#include <torch/csrc/stable/library.h>

#include "concept_cross_entropy.h"
#include "cuda/reals.h"
#include "cuda/stream.h"

namespace hrrl {

std::tuple<Tensor, Tensor, Tensor, Tensor> concept_cross_entropy_cuda(const Tensor& logits, const Tensor& target,
                                                                      const Tensor& concept_, const Tensor& q,
                                                                      const Tensor& concept_count,
                                                                      double label_smoothing, bool with_grad) {
  const ConceptCrossEntropy c =
      prepare_concept_cross_entropy(logits, target, concept_, q, concept_count, label_smoothing, with_grad);
  const Tensor workspace =
      new_empty(c.logits, {cuda::cross_entropy_workspace(c.batch, c.concepts)}, ScalarType::Double);
  // An empty batch is launched as well: its sums are zeros that somebody has to write.
  const cuda::CrossEntropyParams params{c.logits.data_ptr(),
                                        static_cast<const int64_t*>(c.target.data_ptr()),
                                        static_cast<const int64_t*>(c.concept_.data_ptr()),
                                        cuda::reals(c.q),
                                        cuda::reals(c.concept_count),
                                        c.loss.data_ptr(),
                                        cuda::mutable_reals(c.concept_loss),
                                        c.example_loss.data_ptr(),
                                        with_grad ? c.grad_logits.data_ptr() : nullptr,
                                        c.batch,
                                        c.classes,
                                        c.concepts,
                                        label_smoothing,
                                        static_cast<double*>(workspace.data_ptr())};
  const CurrentStream stream(c.logits);
  cuda::launch_concept_cross_entropy(dtype_of(c.logits), params, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return c.result();
}

void scale_gradient_cuda(const Tensor& gradient, const Tensor& factor) {
  check_scale_gradient(gradient, factor);
  const CurrentStream stream(gradient);
  cuda::launch_scale_gradient(dtype_of(gradient), {gradient.data_ptr(), factor.data_ptr(), gradient.numel()}, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) {
  m.impl("concept_cross_entropy", TORCH_BOX(&hrrl::concept_cross_entropy_cuda));
  m.impl("_scale_gradient", TORCH_BOX(&hrrl::scale_gradient_cuda));
}
