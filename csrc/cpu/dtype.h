#pragma once

#include "common/tensor.h"
#include "cpu/kernels.h"

namespace hrrl::cpu {

inline Dtype dtype_of(const Tensor& t) {  // the checks have left only these four
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return Dtype::kDouble;
    case ScalarType::Half:
      return Dtype::kHalf;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      return Dtype::kFloat;
  }
}

// Enough examples for a thread to be worth waking.
inline int64_t grain(int64_t elements_per_row) {
  constexpr int64_t kElementsPerTask = 16384;
  return elements_per_row < kElementsPerTask ? kElementsPerTask / (elements_per_row + 1) + 1 : 1;
}

}  // namespace hrrl::cpu
