// chi_square_response: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include <cmath>

#include "common/chi_square.h"
#include "common/tensor.h"

namespace hrrl {

struct ChiSquareResponse {
  Tensor concept_loss, q0;  // [K] floating, contiguous
  Tensor out;               // [K] dtype of q0
  int64_t size;
  chi_square::Game game;
};

// rho and max_weight are infinite where there is none.
inline ChiSquareResponse prepare_chi_square_response(const Tensor& concept_loss, const Tensor& q0, double lam,
                                                     double rho, double max_weight) {
  constexpr const char* op = "chi_square_response: ";
  HRRL_CHECK(q0.dim() == 1 && q0.size(0) >= 1, op, "q0 must have shape [K] with K >= 1, got ", shape(q0));
  HRRL_CHECK(q0.scalar_type() == ScalarType::Float || q0.scalar_type() == ScalarType::Double, op,
             "q0 must be float32 or float64");
  HRRL_CHECK(same_shape(q0, concept_loss), op, "concept_loss must have the shape of q0, ", shape(q0), ", got ",
             shape(concept_loss));
  HRRL_CHECK(is_floating(concept_loss), op, "concept_loss must be a floating-point tensor");
  HRRL_CHECK(same_device(q0, concept_loss), op, "concept_loss must be on the device of q0");
  HRRL_CHECK(std::isfinite(lam) && lam >= 0, op, "lam must be finite and not negative, got ", lam);
  HRRL_CHECK(rho >= 0, op, "rho must be None or not negative, got ", rho);
  HRRL_CHECK(max_weight >= 1, op, "max_weight must be None or at least 1 (the weights average 1), got ", max_weight);
  return {as_contiguous(concept_loss),
          as_contiguous(q0),
          new_empty(q0, {q0.size(0)}, q0.scalar_type()),
          q0.size(0),
          {lam, rho, max_weight}};
}

}  // namespace hrrl
