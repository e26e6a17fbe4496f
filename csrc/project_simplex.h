// project_simplex and update_distribution: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include <cmath>
#include <optional>

#include "common/tensor.h"

namespace hrrl {

struct ProjectSimplex {
  Tensor v, out;  // [..., K] contiguous
  int64_t rows, size;
  double radius;
};

inline ProjectSimplex prepare_project_simplex(const Tensor& v, double radius) {
  HRRL_CHECK(is_floating(v), "project_simplex: v must be float16, bfloat16, float32 or float64");
  HRRL_CHECK(v.dim() >= 1 && v.size(v.dim() - 1) >= 1,
             "project_simplex: v must have at least one entry along the projected dimension, got ", shape(v));
  HRRL_CHECK(std::isfinite(radius) && radius > 0, "project_simplex: radius must be positive and finite, got ", radius);
  const int64_t size = v.size(v.dim() - 1);
  return {as_contiguous(v), new_empty(v, v.sizes(), v.scalar_type()), v.numel() / size, size, radius};
}

struct ProjectSimplexBackward {
  Tensor p, grad, out;  // [..., K] contiguous
  int64_t rows, size;
};

inline ProjectSimplexBackward prepare_project_simplex_backward(const Tensor& p, const Tensor& grad) {
  constexpr const char* op = "project_simplex_backward: ";
  HRRL_CHECK(is_floating(p), op, "p must be float16, bfloat16, float32 or float64");
  HRRL_CHECK(p.dim() >= 1 && p.size(p.dim() - 1) >= 1, op,
             "p must have at least one entry along its last dimension, got ", shape(p));
  HRRL_CHECK(same_shape(p, grad), op, "grad must have the shape of p, ", shape(p), ", got ", shape(grad));
  HRRL_CHECK(p.scalar_type() == grad.scalar_type(), op, "grad must have the dtype of p; convert one of them");
  HRRL_CHECK(same_device(p, grad), op, "grad must be on the device of p");
  const int64_t size = p.size(p.dim() - 1);
  return {as_contiguous(p), as_contiguous(grad), new_empty(p, p.sizes(), p.scalar_type()), p.numel() / size, size};
}

// One step of Eq. 6. Everything is float64 inside: at lam = 1e-3 the first step moves q by thousands before it is
// projected, where float32 would lose q altogether.
struct UpdateDistribution {
  Tensor q, concept_loss, q0;       // [K] floating, contiguous
  std::optional<Tensor> eta_scale;  // [] double
  Tensor out;                       // [K] dtype of q
  int64_t size;
  double eta, lam;
};

// q, concept_loss and q0
inline void check_ascent(const char* op, const Tensor& q, const Tensor& concept_loss, const Tensor& q0, double lam) {
  HRRL_CHECK(q.dim() == 1 && q.size(0) >= 1, op, "q must have shape [K] with K >= 1, got ", shape(q));
  HRRL_CHECK(q.scalar_type() == ScalarType::Float || q.scalar_type() == ScalarType::Double, op,
             "q must be float32 or float64");
  const Tensor* others[] = {&concept_loss, &q0};
  const char* names[] = {"concept_loss", "q0"};
  for (int i = 0; i < 2; ++i) {
    HRRL_CHECK(same_shape(q, *others[i]), op, names[i], " must have the shape of q, ", shape(q), ", got ",
               shape(*others[i]));
    HRRL_CHECK(is_floating(*others[i]), op, names[i], " must be a floating-point tensor");
    HRRL_CHECK(same_device(q, *others[i]), op, names[i], " must be on the device of q");
  }
  HRRL_CHECK(std::isfinite(lam) && lam >= 0, op, "lam must be finite and not negative, got ", lam);
}

inline UpdateDistribution prepare_update_distribution(const Tensor& q, const Tensor& concept_loss, const Tensor& q0,
                                                      double eta, double lam, const std::optional<Tensor>& eta_scale) {
  constexpr const char* op = "update_distribution: ";
  check_ascent(op, q, concept_loss, q0, lam);
  HRRL_CHECK(std::isfinite(eta) && eta >= 0, op, "eta must be finite and not negative, got ", eta);
  std::optional<Tensor> scale;
  if (eta_scale) {
    HRRL_CHECK(eta_scale->numel() == 1, op, "eta must be a number or a tensor of one entry, got ", shape(*eta_scale));
    HRRL_CHECK(same_device(q, *eta_scale), op, "eta must be on the device of q");
    scale = as_double(*eta_scale);
  }
  return {as_contiguous(q),
          as_contiguous(concept_loss),
          as_contiguous(q0),
          std::move(scale),
          new_empty(q, {q.size(0)}, q.scalar_type()),
          q.size(0),
          eta,
          lam};
}

// The same step with the counter and the schedule of Algorithm 1, in place.
struct StepDistribution {
  Tensor q, t;              // [K], [] int64: written to
  Tensor concept_loss, q0;  // [K] floating, contiguous
  Tensor c;                 // [] floating
  int64_t size, s;
  double lam;
};

inline StepDistribution prepare_step_distribution(const Tensor& q, const Tensor& t, const Tensor& concept_loss,
                                                  const Tensor& q0, const Tensor& c, double lam, int64_t s) {
  constexpr const char* op = "step_distribution: ";
  check_ascent(op, q, concept_loss, q0, lam);
  HRRL_CHECK(q.is_contiguous(), op, "q must be contiguous: it is written to");
  HRRL_CHECK(t.dim() == 0 && t.scalar_type() == ScalarType::Long, op, "t must be an int64 scalar, got ", shape(t));
  HRRL_CHECK(c.dim() == 0 && is_floating(c), op, "c must be a floating-point scalar, got ", shape(c));
  HRRL_CHECK(same_device(q, t) && same_device(q, c), op, "t and c must be on the device of q");
  HRRL_CHECK(lam > 0, op, "lam must be positive, got ", lam);
  HRRL_CHECK(s >= 0, op, "s must not be negative, got ", s);
  return {q, t, as_contiguous(concept_loss), as_contiguous(q0), c, q.size(0), s, lam};
}

}  // namespace hrrl
