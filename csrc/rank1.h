// rank1_dot and rank1_argmin: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include <cmath>

#include "common/tensor.h"

namespace hrrl {

// cross[b, k] += sum over g and m of p[b, g, k, m] q[b, g, k, m]
struct Rank1Dot {
  Tensor cross;  // [B, K] double, the caller's own memory
  Tensor p, q;   // [B, G, K, M] float or double, contiguous
  int64_t batch, groups, clusters, size;

  bool empty() const { return p.numel() == 0; }
};

inline Rank1Dot prepare_rank1_dot(const Tensor& cross, const Tensor& p, const Tensor& q) {
  constexpr const char* op = "rank1_dot: ";
  HRRL_CHECK(p.dim() == 4, op, "p must have shape [B, G, K, M], got ", shape(p));
  HRRL_CHECK(p.scalar_type() == ScalarType::Float || p.scalar_type() == ScalarType::Double, op,
             "p must be float32 or float64; convert it");
  HRRL_CHECK(same_shape(p, q), op, "q must have the shape of p, ", shape(p), ", got ", shape(q));
  HRRL_CHECK(p.scalar_type() == q.scalar_type(), op, "q must have the dtype of p; convert one of them");
  HRRL_CHECK(cross.dim() == 2 && cross.size(0) == p.size(0) && cross.size(1) == p.size(2), op,
             "cross must have shape [B, K] = [", p.size(0), ", ", p.size(2), "] for p ", shape(p), ", got ",
             shape(cross));
  HRRL_CHECK(cross.scalar_type() == ScalarType::Double, op,
             "cross must be float64: it collects the sums of all layers");
  HRRL_CHECK(
      cross.is_contiguous(), op,
      "cross must be contiguous, for it is written to in place; start from torch.zeros(B, K, dtype=torch.float64)");
  HRRL_CHECK(same_device(p, q), op, "p and q must be on the same device");
  HRRL_CHECK(same_device(p, cross), op, "cross must be on the device of p");
  return {cross, as_contiguous(p), as_contiguous(q), p.size(0), p.size(1), p.size(2), p.size(3)};
}

// The centre with the lowest weight_k S_k, S_k = max(centre_square_k - 2 cross_k + square, 0)
struct Rank1Argmin {
  Tensor cross, square;          // [B, K], [B] double, contiguous
  Tensor centre_square, weight;  // [K] double, contiguous
  Tensor assignment;             // [B] int64
  Tensor distance, gap;          // [B] double
  int64_t batch, clusters;
  double rtol;
};

inline Rank1Argmin prepare_rank1_argmin(const Tensor& cross, const Tensor& square, const Tensor& centre_square,
                                        const Tensor& weight, double rtol) {
  constexpr const char* op = "rank1_argmin: ";
  HRRL_CHECK(cross.dim() == 2 && cross.size(1) >= 1, op, "cross must have shape [B, K] with K >= 1, got ",
             shape(cross));
  const int64_t batch = cross.size(0), clusters = cross.size(1);
  HRRL_CHECK(square.dim() == 1 && square.size(0) == batch, op, "square must have shape [", batch,
             "], one value per example of cross, got ", shape(square));
  const Tensor* of_centres[] = {&centre_square, &weight};
  const char* of_centres_names[] = {"centre_square", "weight"};
  for (int i = 0; i < 2; ++i)
    HRRL_CHECK(of_centres[i]->dim() == 1 && of_centres[i]->size(0) == clusters, op, of_centres_names[i],
               " must have shape [", clusters, "], one value per cluster of cross, got ", shape(*of_centres[i]));
  const Tensor* all[] = {&cross, &square, &centre_square, &weight};
  const char* names[] = {"cross", "square", "centre_square", "weight"};
  for (int i = 0; i < 4; ++i) {
    HRRL_CHECK(all[i]->scalar_type() == ScalarType::Double, op, names[i], " must be float64; convert it");
    HRRL_CHECK(same_device(cross, *all[i]), op, names[i], " must be on the device of cross");
  }
  HRRL_CHECK(std::isfinite(rtol) && rtol >= 0, op, "rtol must be finite and not negative, got ", rtol);
  return {as_contiguous(cross),
          as_contiguous(square),
          as_contiguous(centre_square),
          as_contiguous(weight),
          new_empty(cross, {batch}, ScalarType::Long),
          new_empty(cross, {batch}, ScalarType::Double),
          new_empty(cross, {batch}, ScalarType::Double),
          batch,
          clusters,
          rtol};
}

}  // namespace hrrl
