#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

#include "common/dtype.h"
#include "cpu/kernels.h"

namespace hrrl::cpu {

using hrrl::dtype_of;

// Calls f with a pointer to the elements of a contiguous floating-point tensor, in their own type.
template <class F>
auto visit(const Tensor& t, F f) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return f(static_cast<double*>(t.data_ptr()));
    case ScalarType::Half:
      return f(static_cast<torch::headeronly::Half*>(t.data_ptr()));
    case ScalarType::BFloat16:
      return f(static_cast<torch::headeronly::BFloat16*>(t.data_ptr()));
    default:
      return f(static_cast<float*>(t.data_ptr()));
  }
}

// The values of a contiguous floating-point tensor as doubles, copied only where they are not. Costs no call through
// the dispatcher, which would take as long as everything else that is done with a distribution of ten concepts.
class Doubles {
 public:
  explicit Doubles(const Tensor& t) {
    visit(t, [&](const auto* values) {
      if constexpr (std::is_same_v<decltype(values), const double*>) {
        values_ = values;
      } else {
        converted_.assign(values, values + t.numel());
        values_ = converted_.data();
      }
    });
  }
  Doubles(const Doubles&) = delete;
  double operator[](int64_t i) const { return values_[i]; }

 private:
  std::vector<double> converted_;
  const double* values_ = nullptr;
};

// Calls f(begin, end) for ranges of rows, on as many threads as there is work for: waking the others costs about as
// much as 16384 elements. No thread is woken for one range, and nothing is asked of the pool.
template <class F>
void parallel_rows(int64_t rows, int64_t elements_per_row, F f) {
  constexpr int64_t kElementsPerTask = 16384;
  const int64_t grain = std::max<int64_t>(kElementsPerTask / (elements_per_row + 1), 1);
  if (rows <= grain)
    f(0, rows);
  else
    torch::stable::parallel_for(0, rows, grain, f);
}

}  // namespace hrrl::cpu
