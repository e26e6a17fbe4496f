// The floating-point types of the kernels, by a name that needs neither torch nor CUDA.
#pragma once

namespace hrrl {

enum class Dtype { kFloat, kDouble, kHalf, kBFloat16 };

}  // namespace hrrl
