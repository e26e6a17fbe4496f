// ||g||^2 and the step that follows from it, as perturb.cu sums and takes them.
//
// - The squares are summed in double, as on the CPU and for the same reason: a float32 gradient keeps its direction
//   from 1e-45 to 3e38. Doubles themselves are summed in three ranges (WideSquares), which costs no second pass.
// - ||g|| = 0 and ||g|| not finite leave the example as it is, to the bit.
#pragma once

#include <cmath>

#include "cuda/reduce.cuh"

namespace hrrl::cuda {

// ---------------------------------------------------------------------------------------------------------------------
// Sums

struct Squares {
  double total;
  __device__ void add(float g) { total += static_cast<double>(g) * static_cast<double>(g); }
};
__device__ inline Squares operator+(Squares a, Squares b) { return {a.total + b.total}; }
__device__ inline Squares shuffle_xor(unsigned mask, Squares s, int offset) {
  return {shuffle_xor(mask, s.total, offset)};
}

// The squares of doubles, small and big entries scaled into range by powers of two (Blue, 1978; the constants of
// LAPACK's dnrm2). NaN fails both comparisons and shows in `medium`; infinity shows in `big`, where no finite entry
// overflows.
struct WideSquares {
  static constexpr double kSmall = 0x1p-511, kSmallScale = 0x1p537;
  static constexpr double kBig = 0x1p486, kBigScale = 0x1p-538;
  double small, medium, big;

  __device__ void add(double g) {
    const double magnitude = fabs(g);
    if (magnitude > kBig)
      big += (g * kBigScale) * (g * kBigScale);
    else if (magnitude < kSmall)
      small += (g * kSmallScale) * (g * kSmallScale);
    else
      medium += g * g;
  }
};
__device__ inline WideSquares operator+(WideSquares a, WideSquares b) {
  return {a.small + b.small, a.medium + b.medium, a.big + b.big};
}
__device__ inline WideSquares shuffle_xor(unsigned mask, WideSquares s, int offset) {
  return {shuffle_xor(mask, s.small, offset), shuffle_xor(mask, s.medium, offset), shuffle_xor(mask, s.big, offset)};
}

// ---------------------------------------------------------------------------------------------------------------------
// Steps
//
// The step of an example: its norm, whether it moves at all, and visit(run), which calls run(f) with the f that takes
// an element of x and one of g to one of out.

// Of float, half or bfloat16. tau / ||g|| may leave the range of float: such an example takes the loop in double, so
// all others have one without a choice inside.
struct FloatStep {
  using Total = Squares;
  double norm, factor;
  bool moves;

  __device__ FloatStep(Squares squares, double tau) : norm(sqrt(squares.total)), factor(tau / norm) {
    moves = norm > 0.0 && norm < HUGE_VAL && tau != 0.0;
  }
  template <class Run>
  __device__ void visit(Run run) const {
    if (fabs(factor) > 1e-30 && fabs(factor) < 1e30)
      run([f = static_cast<float>(factor)](float x, float g) { return x + g * f; });
    else
      run([f = factor](float x, float g) { return x + static_cast<float>(static_cast<double>(g) * f); });
  }
};

// Of double. ||g|| = root / scale with root in range: ||g|| may overflow while its direction is still good.
struct DoubleStep {
  using Total = WideSquares;
  double norm, scale, root, tau;
  bool moves;

  __device__ DoubleStep(WideSquares s, double tau) : scale(1.0), root(sqrt(s.medium)), tau(tau) {
    constexpr double kSmallMatters = 0x1p-60;  // above, the small squares are beyond the last bit of the sum
    if (s.big > 0.0) {
      scale = WideSquares::kBigScale;
      root = sqrt(s.big + (s.medium * scale) * scale);
    } else if (s.medium < kSmallMatters) {
      scale = WideSquares::kSmallScale;
      root = sqrt(s.small + (s.medium * scale) * scale);
    }
    const bool finite = s.medium + s.big < HUGE_VAL;
    norm = finite ? root / scale : s.medium + s.big;
    moves = finite && root > 0.0 && tau != 0.0;
  }
  template <class Run>
  __device__ void visit(Run run) const {
    run([s = *this](double x, double g) { return x + s.tau * ((g * s.scale) / s.root); });
  }
};

template <class scalar_t>
struct StepOf {
  using type = FloatStep;
  using norm_t = float;
};
template <>
struct StepOf<double> {
  using type = DoubleStep;
  using norm_t = double;
};
template <class scalar_t>
using Step = typename StepOf<scalar_t>::type;
template <class scalar_t>
using TotalOf = typename Step<scalar_t>::Total;

}  // namespace hrrl::cuda
