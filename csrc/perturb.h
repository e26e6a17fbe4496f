// perturb: checks, layout and allocation, shared by the CPU and the CUDA implementation.
//
// The norm of an example does not depend on the order of its elements. So when x, grad and the output have the same
// strides and each example is one dense block of memory, the kernel sees flat rows [B, P], whatever the memory format:
// contiguous and channels_last are the same work and neither is copied.
#pragma once

#include <cmath>
#include <optional>

#include "common/tensor.h"

namespace hrrl {

struct Perturb {
  Tensor x, grad, out;              // equal strides, every example one dense block of `size` elements
  Tensor norm;                      // [B]
  std::optional<Tensor> tau_scale;  // [B] double, contiguous
  int64_t batch, size;
  Tensor x_perturbed;  // what is returned: `out`, or what `out` is copied to by finish()

  void finish() {
    if (x_perturbed.get() != out.get()) torch::stable::copy_(x_perturbed, out);
  }
};

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

inline Tensor with_layout_of(const Tensor& layout, const Tensor& t) {
  if (same_strides(layout, t)) return t;
  Tensor copy = new_like(layout);
  return torch::stable::copy_(copy, t);
}

inline Perturb prepare_perturb(const Tensor& x, const Tensor& grad, double tau,
                               const std::optional<Tensor>& tau_scale) {
  HRRL_CHECK(x.dim() >= 1, "perturb: x must have a batch dimension, got a scalar");
  HRRL_CHECK(is_floating(x), "perturb: x must be float16, bfloat16, float32 or float64 (images in [0, 1]); convert it");
  HRRL_CHECK(same_shape(x, grad), "perturb: grad must have the shape of x, ", shape(x), ", got ", shape(grad));
  HRRL_CHECK(x.scalar_type() == grad.scalar_type(), "perturb: grad must have the dtype of x; convert one of them");
  HRRL_CHECK(same_device(x, grad), "perturb: x and grad must be on the same device");
  HRRL_CHECK(std::isfinite(tau), "perturb: tau must be finite, got ", tau);

  const int64_t batch = x.size(0);
  const int64_t size = batch ? x.numel() / batch : 0;
  const ScalarType norm_type = computed_type(x);

  Tensor x_perturbed = new_like(x);  // dense; the strides of x where x is dense
  const bool rows_are_blocks = batch <= 1 || x_perturbed.stride(0) == size;
  Tensor out = rows_are_blocks ? x_perturbed : new_empty(x, x.sizes(), x.scalar_type());

  std::optional<Tensor> scale;
  if (tau_scale) {
    HRRL_CHECK(tau_scale->dim() == 1 && tau_scale->size(0) == batch, "perturb: tau must be a number or have shape [",
               batch, "], one value per example, got ", shape(*tau_scale));
    HRRL_CHECK(is_floating(*tau_scale), "perturb: tau must be a floating-point tensor");
    HRRL_CHECK(same_device(x, *tau_scale), "perturb: x and tau must be on the same device");
    scale = as_double(*tau_scale);
  }
  return {with_layout_of(out, x),
          with_layout_of(out, grad),
          out,
          new_empty(x, {batch}, norm_type),
          std::move(scale),
          batch,
          size,
          x_perturbed};
}

}  // namespace hrrl
