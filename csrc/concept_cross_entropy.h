// concept_cross_entropy: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include "common/tensor.h"

namespace hrrl {

struct ConceptCrossEntropy {
  Tensor logits;            // [B, C] contiguous
  Tensor target, concept_;  // [B] int64 contiguous
  Tensor q, concept_count;  // [K] floating, contiguous
  Tensor loss;              // []  float, or double for double logits
  Tensor concept_loss;      // [K] dtype of q
  Tensor example_loss;      // [B] dtype of loss
  Tensor grad_logits;       // [B, C], or [0] without gradient
  int64_t batch, classes, concepts;
  double label_smoothing;

  std::tuple<Tensor, Tensor, Tensor, Tensor> result() const { return {loss, concept_loss, example_loss, grad_logits}; }
};

inline ConceptCrossEntropy prepare_concept_cross_entropy(const Tensor& logits, const Tensor& target,
                                                         const Tensor& concept_, const Tensor& q,
                                                         const Tensor& concept_count, double label_smoothing,
                                                         bool with_grad) {
  constexpr const char* op = "concept_cross_entropy: ";
  HRRL_CHECK(logits.dim() == 2, op, "logits must have shape [B, C], got ", shape(logits));
  HRRL_CHECK(is_floating(logits), op, "logits must be float16, bfloat16, float32 or float64");
  const int64_t batch = logits.size(0), classes = logits.size(1);
  HRRL_CHECK(classes >= 1, op, "logits must have at least one class, got ", shape(logits));

  const Tensor* ids[] = {&target, &concept_};
  const char* names[] = {"target", "concept"};
  for (int i = 0; i < 2; ++i) {
    HRRL_CHECK(ids[i]->dim() == 1 && ids[i]->size(0) == batch, op, names[i],
               " must have one entry per example, shape [", batch, "] like logits, got ", shape(*ids[i]));
    HRRL_CHECK(ids[i]->scalar_type() == ScalarType::Long, op, names[i], " must be int64; use .long()");
    HRRL_CHECK(same_device(logits, *ids[i]), op, names[i], " must be on the device of logits");
  }
  HRRL_CHECK(q.dim() == 1 && q.size(0) >= 1, op, "q must have shape [K] with K >= 1, got ", shape(q));
  HRRL_CHECK(q.scalar_type() == ScalarType::Float || q.scalar_type() == ScalarType::Double, op,
             "q must be float32 or float64");
  HRRL_CHECK(same_shape(q, concept_count), op, "q must have one entry per concept, shape ", shape(concept_count),
             " like concept_count, got ", shape(q));
  HRRL_CHECK(same_device(logits, q) && same_device(logits, concept_count), op,
             "q and concept_count must be on the device of logits");
  HRRL_CHECK(label_smoothing >= 0.0 && label_smoothing < 1.0, op, "label_smoothing must lie in [0, 1), got ",
             label_smoothing);

  const ScalarType type = logits.scalar_type();
  const ScalarType loss_type = computed_type(logits);
  // The gradient leaves before any loss scale is applied, and float16 has no room for it: entries of size
  // p / B underflow. It is kept in float32 there and rounded once, after the scale (hrrl_ext/ops/_autograd.py).
  const ScalarType grad_type = type == ScalarType::Half ? ScalarType::Float : type;
  return {as_contiguous(logits),
          as_contiguous(target),
          as_contiguous(concept_),
          as_contiguous(q),
          as_contiguous(as_floating(concept_count)),
          new_empty(logits, {}, loss_type),
          new_empty(logits, {q.size(0)}, q.scalar_type()),
          new_empty(logits, {batch}, loss_type),
          with_grad ? new_empty(logits, {batch, classes}, grad_type) : new_empty(logits, {0}, grad_type),
          batch,
          classes,
          q.size(0),
          label_smoothing};
}

// _scale_gradient: grad_logits, and the gradient of loss, which has its type.
inline void check_scale_gradient(const Tensor& gradient, const Tensor& factor) {
  constexpr const char* op = "_scale_gradient: ";
  HRRL_CHECK(is_floating(gradient) && gradient.is_contiguous(), op, "gradient must be floating and contiguous");
  HRRL_CHECK(factor.numel() == 1 && factor.scalar_type() == computed_type(gradient), op,
             "factor must have one entry, of float32, or of float64 for float64, got ", shape(factor));
  HRRL_CHECK(same_device(gradient, factor), op, "factor must be on the device of gradient");
}

}  // namespace hrrl
