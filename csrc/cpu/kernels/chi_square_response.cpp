// The best response of the concepts in the chi-square game: the sums that csrc/common/chi_square.h asks for.
//
// Losses and q0 are copied to doubles once, filled up to whole vectors with concepts of no mass: every visit is whole
// vectors, and a concept of no mass has no part in any sum.
#include "common/chi_square.h"
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

static_assert(kChiSquareLanes % kDoubles == 0, "room for whole vectors");

constexpr double kInfinity = __builtin_inf();

class Concepts {
 public:
  Concepts(const ChiSquareArgs& a, double* scratch)
      : size_((a.size + kDoubles - 1) / kDoubles * kDoubles), x_(scratch), q0_(scratch + size_) {
    read(a.concept_loss_type, a.concept_loss, a.size, 0.5, x_);
    read(a.q0_type, a.q0, a.size, 1.0, q0_);
  }

  chi_square::Range range() const {
    vdouble least = vdouble{} + kInfinity, most = vdouble{} - kInfinity, mass = {};
    vlong usable = ~vlong{};
    each([&](vdouble loss, vdouble q0) {
      const vlong counts = q0 > 0.0;
      least = min(least, counts ? loss : vdouble{} + kInfinity);
      most = max(most, counts ? loss : vdouble{} - kInfinity);
      mass += q0;
      usable &= (loss < kInfinity) & (loss > -kInfinity) & (q0 < kInfinity) & (q0 >= 0.0);
    });
    return {-max(-least), max(most), sum(mass), sum(usable) == -kDoubles};
  }

  chi_square::Cut cut(double p) const {
    vdouble mass = {}, least = vdouble{} + kInfinity, greatest = vdouble{} - kInfinity;
    each([&](vdouble loss, vdouble q0) {
      const vlong counts = q0 > 0.0, above = loss >= p;
      mass += above ? q0 : vdouble{};
      least = min(least, (counts & above) ? loss : vdouble{} + kInfinity);
      greatest = max(greatest, (counts & ~above) ? loss : vdouble{} - kInfinity);
    });
    return {sum(mass), -max(-least), max(greatest)};
  }

  double shift(double t, double length) {
    vdouble total = {};
    for (int64_t k = 0; k < size_; k += kDoubles) {
      const vdouble q0 = load(q0_ + k), x = (load(x_ + k) - t) / length;
      const vdouble shifted = q0 > 0.0 ? x : vdouble{};
      store(x_ + k, shifted);
      total += q0 * shifted;
    }
    return sum(total);
  }

  chi_square::Sides sides(const chi_square::Weights& w) const {
    vdouble mass = {}, at = {}, capped = {};
    each([&](vdouble x, vdouble q0) {
      const vdouble weight = w.s * x + w.b;
      const vdouble free = ((weight > 0.0) & (weight < w.cap)) ? q0 : vdouble{};
      mass += free;
      at += free * x;
      capped += weight >= w.cap ? q0 : vdouble{};
    });
    return {sum(mass), sum(at), sum(capped)};
  }

  chi_square::Scatter scatter(const chi_square::Weights& w, double mean) const {
    vdouble free = {}, others = {};
    each([&](vdouble x, vdouble q0) {
      const vdouble weight = w.s * x + w.b;
      const vlong is_free = (weight > 0.0) & (weight < w.cap);
      const vdouble off = is_free ? x - mean : weight > 0.0 ? vdouble{} + (w.cap - 1.0) : vdouble{} - 1.0;
      free += is_free ? q0 * off * off : vdouble{};
      others += is_free ? vdouble{} : q0 * off * off;
    });
    return {sum(free), sum(others)};
  }

  static double root(double v) { return __builtin_sqrt(v); }

  template <class scalar_t>
  void write(const chi_square::Weights& w, int64_t size, scalar_t* out) const {
    for (int64_t k = 0; k < size; ++k) assign(out[k], q0_[k] * chi_square::weight_at(w, x_[k]));
  }

 private:
  template <class F>
  HRRL_INLINE_MEMBER void each(F f) const {
    for (int64_t k = 0; k < size_; k += kDoubles) f(load(x_ + k), load(q0_ + k));
  }
  void read(Dtype dtype, const void* from, int64_t size, double factor, double* to) const {
    dispatch(dtype, [&](auto type) {
      const auto* v = static_cast<const decltype(type)*>(from);
      for (int64_t k = 0; k < size; ++k) to[k] = factor * to_double(v[k]);
    });
    for (int64_t k = size; k < size_; ++k) to[k] = 0.0;
  }

  int64_t size_;
  double *x_, *q0_;  // halved losses until shift()
};

void chi_square_response(const ChiSquareArgs& a, double* scratch) {
  Concepts concepts(a, scratch);
  const chi_square::Weights w = chi_square::respond(concepts, a.game);
  if (a.q0_type == Dtype::kDouble)
    concepts.write(w, a.size, static_cast<double*>(a.out));
  else
    concepts.write(w, a.size, static_cast<float*>(a.out));
}

}  // namespace hrrl::cpu::HRRL_ISA
