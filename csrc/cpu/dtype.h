#pragma once

#include "common/dtype.h"
#include "cpu/kernels.h"

namespace hrrl::cpu {

using hrrl::dtype_of;

// Enough examples for a thread to be worth waking.
inline int64_t grain(int64_t elements_per_row) {
  constexpr int64_t kElementsPerTask = 16384;
  return elements_per_row < kElementsPerTask ? kElementsPerTask / (elements_per_row + 1) + 1 : 1;
}

}  // namespace hrrl::cpu
