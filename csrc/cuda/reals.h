// Tensors as the launchers take them.
#pragma once

#include "common/dtype.h"
#include "common/tensor.h"
#include "cuda/launch.h"

namespace hrrl::cuda {

inline Reals reals(const Tensor& t) { return {t.data_ptr(), dtype_of(t)}; }
inline MutableReals mutable_reals(const Tensor& t) { return {t.data_ptr(), dtype_of(t)}; }

}  // namespace hrrl::cuda
