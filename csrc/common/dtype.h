#pragma once

#include "common/dtype_id.h"
#include "common/tensor.h"

namespace hrrl {

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

}  // namespace hrrl
