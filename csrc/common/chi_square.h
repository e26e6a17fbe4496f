// The best response of the concepts in the chi-square game, for whoever sums over them: a vector of lanes or a block of
// threads. q_k = q0_k w_k, and w_k = clip(s x_k + b, 0, cap):
//
// - x_k = (loss_k - t) / range, where t is the loss down to which the cap leaves something to give: the largest t with
//   cap * (mass of q0 at or above t) >= mass of q0. It is the largest loss where there is no cap. So b, the weight at
//   t, lies in [0, cap] whatever s is, and differences to t are exact where they are small: no scale costs precision.
// - s = range / lam is the pressure, and less where the ball binds. b is the root of sum q0_k w_k = sum q0_k, piecewise
//   linear and rising in b: Newton's method, whose step from the sums over the free concepts (0 < w_k < cap) forgets
//   the rounding of those before, within a bracket, since a sum that is clipped on both sides is neither convex nor
//   concave. When no concept changes sides b is exact.
// - The distance sum q0_k (w_k - 1)^2 rises with s, and is concave and piecewise linear in s^2: as s grows concepts
//   only leave the free ones, whose scatter is its slope. So Newton's method in s^2 climbs to the ball from below, and
//   where the scatter is 0 it has arrived at the largest distance there is.
// - DBL_MAX stands for infinity, a cap or a pressure (lam = 0) without end: times 0 it is 0. Losses are halved first,
//   so that their differences are finite.
//
// Compiled once per instruction set, like the kernels: functions are static, or templates of a type of their own.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HRRL_EVERYWHERE __device__
#else
#define HRRL_EVERYWHERE
#endif

namespace hrrl::chi_square {

constexpr double kLargest = 1.7976931348623157e308;
constexpr double kRounding = 2.2204460492503131e-16;

struct Game {
  double lam, rho, cap;  // rho and cap: infinity is none
};

struct Range {  // of the halved losses where q0 > 0
  double least, most, mass;
  bool usable;  // every number is finite, no q0 is negative
};
struct Cut {  // at a halved loss p: the mass at or above, the least value there, and the greatest below
  double mass, least, greatest;
};
struct Sides {  // sums of q0 and of q0 x over the free concepts, and of q0 over those at the cap
  double mass, x, capped;
};
struct Scatter {  // of the free concepts about their mean, and the distance of the others to q0
  double free, others;
};
struct Weights {  // w_k = clip(s x_k + b, 0, cap)
  double s, b, cap;
};
HRRL_EVERYWHERE static inline double weight_at(Weights w, double x) {
  const double free = w.s * x + w.b;
  return free < 0.0 ? 0.0 : free > w.cap ? w.cap : free;
}

// The t above. Every step takes a loss at least off one end of [low, high], and halves it.
template <class Concepts>
HRRL_EVERYWHERE double reference_loss(Concepts& concepts, Range range, double cap) {
  if (cap == kLargest) return range.most;
  double low = range.least, high = range.most;
  while (low < high) {
    double p = low + (high - low) / 2;
    if (!(p > low)) p = high;
    const Cut cut = concepts.cut(p);
    if (cap * cut.mass >= range.mass)
      low = cut.least;
    else
      high = cut.greatest;
  }
  return low;
}

// b where w.s is given, from w.b on, and the sides of the concepts there.
template <class Concepts>
HRRL_EVERYWHERE Sides balance(Concepts& concepts, double mass, Weights& w) {
  double low = 0.0, high = 2 * w.cap;  // the cap itself is within
  for (int round = 1;; ++round) {
    const Sides sides = concepts.sides(w);
    const double excess = w.cap * sides.capped + w.s * sides.x + w.b * sides.mass - mass;
    double next = (mass - w.cap * sides.capped - w.s * sides.x) / sides.mass;
    if (next == w.b || (excess <= kRounding * mass && excess >= -kRounding * mass)) return sides;
    (excess < 0.0 ? low : high) = w.b;
    // Also where nobody is free and next is NaN. And from time to time, so that a bracket shrinks whatever happens.
    const bool halve = round % 8 == 0 && w.cap < kLargest;
    if (halve || !(next > low && next < high)) next = low + (high - low) / 2;
    if (!(next > low && next < high)) return sides;
    w.b = next;
  }
}

// Newton's next b for another s, if nobody changed sides.
HRRL_EVERYWHERE static inline double predicted(Sides sides, double mass, Weights w) {
  const double b = (mass - w.cap * sides.capped - w.s * sides.x) / sides.mass;
  return b > 0.0 ? b < w.cap ? b : w.cap : 0.0;
}

// Concepts have range(), cut(p), shift(t, range) -> sum of q0 x, sides(weights), scatter(weights, mean), root(v). The
// cap of the result is NaN where there is no answer, and then so are all weights.
template <class Concepts>
HRRL_EVERYWHERE Weights respond(Concepts& concepts, Game game) {
  Weights w{0.0, 1.0, game.cap < kLargest ? game.cap : kLargest};
  const Range range = concepts.range();
  if (!range.usable || !(range.mass > 0.0)) return {__builtin_nan(""), __builtin_nan(""), __builtin_nan("")};
  const double t = reference_loss(concepts, range, w.cap);
  const double above = range.most - t, below = t - range.least, length = above > below ? above : below;
  if (!(length > 0.0) || w.cap <= 1.0) return w;  // equal losses, or no weight but 1
  Sides sides{range.mass, concepts.shift(t, length), 0.0};
  const double most = length / (game.lam / 2), pressure = most < kLargest ? most : kLargest;
  if (!(game.rho < kLargest)) {
    w.s = pressure;
    w.b = predicted(sides, range.mass, w);
    balance(concepts, range.mass, w);
    return w;
  }
  while (w.s < pressure && sides.mass > 0.0) {
    const Scatter scatter = concepts.scatter(w, sides.x / sides.mass);
    const double mean = (range.mass - w.cap * sides.capped) / sides.mass;  // of the free weights
    const double room = game.rho * game.rho - scatter.others - sides.mass * (mean - 1.0) * (mean - 1.0);
    if (!(room > 0.0 && scatter.free > 0.0)) return w;
    const double next = concepts.root(room / scatter.free);
    if (!(next > w.s)) return w;
    w.s = next < pressure ? next : pressure;
    w.b = predicted(sides, range.mass, w);
    sides = balance(concepts, range.mass, w);
  }
  return w;
}

}  // namespace hrrl::chi_square
