// Threshold nu of the projection onto the simplex {p >= 0, sum p = radius}: P(v) = max(v - nu, 0).
//
// - Newton's method on the convex, piecewise linear f(nu) = sum_j max(v_j - nu, 0) - radius (Michelot, 1986). On the
// support
//   S = {v_j > nu} its step is nu = (sum_S v_j - radius) / |S|, computed in this form because it forgets the rounding
//   of the steps before. It starts at or below the root and climbs, S only shrinks, and when it stops shrinking nu is
//   exact. No sort, no scratch, 2 to 12 passes in practice.
// - P(v + a) = P(v) for a constant a, so v is shifted by its maximum: entries of 1e30 cost no precision.
// - -inf is an entry that gets nothing. NaN or +inf anywhere gives NaN everywhere (never an endless loop).
#pragma once

#include <cstdint>

namespace hrrl {

struct SimplexThreshold {
  double max;  // of v
  double nu;   // of v - max: P(v)_j = max((v_j - max) - nu, 0)
};

template <class scalar_t>
inline SimplexThreshold simplex_threshold(const scalar_t* v, int64_t size, double radius) {
  double max = static_cast<double>(v[0]);
  bool finite = true;
  for (int64_t j = 0; j < size; ++j) {
    const double value = static_cast<double>(v[j]);
    if (value > max) max = value;
    finite &= value < __builtin_inf();  // false for NaN and +inf
  }
  if (!finite || max == -__builtin_inf()) return {0.0, __builtin_nan("")};

  double nu = -radius;  // at or below the root: the largest entry alone reaches the radius
  int64_t support = size + 1;
  for (;;) {
    // Four partial sums: a chain of dependent additions would be the slowest part of the loop.
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
    int64_t count[4] = {0, 0, 0, 0};
    const auto add = [&](int64_t j, int lane) {
      const double value = static_cast<double>(v[j]) - max;
      sum[lane] += value > nu ? value : 0.0;
      count[lane] += value > nu;
    };
    int64_t j = 0;
    for (; j + 4 <= size; j += 4)
      for (int lane = 0; lane < 4; ++lane) add(j + lane, lane);
    for (; j < size; ++j) add(j, 0);

    const int64_t now = count[0] + count[1] + count[2] + count[3];
    if (now >= support || now == 0) return {max, nu};
    support = now;
    nu = ((sum[0] + sum[1]) + (sum[2] + sum[3]) - radius) / static_cast<double>(support);
  }
}

}  // namespace hrrl
