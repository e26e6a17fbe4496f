// The best response of the concepts in the chi-square game: the sums that csrc/common/chi_square.h asks for, by one
// block, in one launch.
//
// Every thread takes the same decisions, from sums that have the same bits in all of them. Losses and q0 wait as
// doubles in shared memory where they fit, else in a workspace. A thread visits its own entries only, so the only
// barriers are those of the reductions.
#include "common/chi_square.h"
#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"

// What is reduced together; argument-dependent lookup finds it.
namespace hrrl::chi_square {

using cuda::Max;
using cuda::Min;
using cuda::shuffle_xor;

__device__ inline Range operator+(Range a, Range b) {
  return {Min{}(a.least, b.least), Max{}(a.most, b.most), a.mass + b.mass, a.usable && b.usable};
}
__device__ inline Range shuffle_xor(unsigned mask, Range r, int offset) {
  return {shuffle_xor(mask, r.least, offset), shuffle_xor(mask, r.most, offset), shuffle_xor(mask, r.mass, offset),
          shuffle_xor(mask, static_cast<int>(r.usable), offset) != 0};
}
__device__ inline Cut operator+(Cut a, Cut b) {
  return {a.mass + b.mass, Min{}(a.least, b.least), Max{}(a.greatest, b.greatest)};
}
__device__ inline Cut shuffle_xor(unsigned mask, Cut c, int offset) {
  return {shuffle_xor(mask, c.mass, offset), shuffle_xor(mask, c.least, offset), shuffle_xor(mask, c.greatest, offset)};
}
__device__ inline Sides operator+(Sides a, Sides b) { return {a.mass + b.mass, a.x + b.x, a.capped + b.capped}; }
__device__ inline Sides shuffle_xor(unsigned mask, Sides s, int offset) {
  return {shuffle_xor(mask, s.mass, offset), shuffle_xor(mask, s.x, offset), shuffle_xor(mask, s.capped, offset)};
}
__device__ inline Scatter operator+(Scatter a, Scatter b) { return {a.free + b.free, a.others + b.others}; }
__device__ inline Scatter shuffle_xor(unsigned mask, Scatter s, int offset) {
  return {shuffle_xor(mask, s.free, offset), shuffle_xor(mask, s.others, offset)};
}

}  // namespace hrrl::chi_square

namespace hrrl::cuda {

constexpr int kConceptsOfThread = 4;     // until the block is full
constexpr int64_t kHeldConcepts = 6144;  // with losses and q0 they fit 99 KB, the least that any device gives a block

class BlockOfConcepts {
 public:
  __device__ BlockOfConcepts(const ChiSquareParams& a, double* entries)
      : size_(a.size), x_(entries), q0_(entries + a.size) {
    for (int64_t k = threadIdx.x; k < size_; k += blockDim.x) {
      x_[k] = 0.5 * load(a.concept_loss, k);
      q0_[k] = load(a.q0, k);
    }
  }

  __device__ chi_square::Range range() const {
    chi_square::Range r{HUGE_VAL, -HUGE_VAL, 0.0, true};
    each([&](double loss, double q0) {
      if (q0 > 0.0) r = {Min{}(r.least, loss), Max{}(r.most, loss), r.mass + q0, r.usable};
      r.usable = r.usable && fabs(loss) < HUGE_VAL && q0 >= 0.0 && q0 < HUGE_VAL;
    });
    return BlockTeam::reduce(r, Sum{});
  }

  __device__ chi_square::Cut cut(double p) const {
    chi_square::Cut c{0.0, HUGE_VAL, -HUGE_VAL};
    each([&](double loss, double q0) {
      if (!(q0 > 0.0)) return;
      if (loss >= p)
        c = {c.mass + q0, Min{}(c.least, loss), c.greatest};
      else
        c.greatest = Max{}(c.greatest, loss);
    });
    return BlockTeam::reduce(c, Sum{});
  }

  __device__ double shift(double t, double length) {
    double total = 0.0;
    for (int64_t k = threadIdx.x; k < size_; k += blockDim.x) {
      x_[k] = q0_[k] > 0.0 ? (x_[k] - t) / length : 0.0;
      total += q0_[k] * x_[k];
    }
    return BlockTeam::reduce(total, Sum{});
  }

  __device__ chi_square::Sides sides(const chi_square::Weights& w) const {
    chi_square::Sides s{0.0, 0.0, 0.0};
    each([&](double x, double q0) {
      const double weight = w.s * x + w.b;
      if (weight >= w.cap)
        s.capped += q0;
      else if (weight > 0.0)
        s = {s.mass + q0, s.x + q0 * x, s.capped};
    });
    return BlockTeam::reduce(s, Sum{});
  }

  __device__ chi_square::Scatter scatter(const chi_square::Weights& w, double mean) const {
    chi_square::Scatter s{0.0, 0.0};
    each([&](double x, double q0) {
      const double weight = w.s * x + w.b;
      if (weight >= w.cap)
        s.others += q0 * (w.cap - 1.0) * (w.cap - 1.0);
      else if (weight > 0.0)
        s.free += q0 * (x - mean) * (x - mean);
      else
        s.others += q0;
    });
    return BlockTeam::reduce(s, Sum{});
  }

  __device__ static double root(double v) { return sqrt(v); }

  __device__ void write(const chi_square::Weights& w, MutableReals out) const {
    for (int64_t k = threadIdx.x; k < size_; k += blockDim.x) store(out, k, q0_[k] * chi_square::weight_at(w, x_[k]));
  }

 private:
  template <class F>
  __device__ void each(F f) const {
    for (int64_t k = threadIdx.x; k < size_; k += blockDim.x) f(x_[k], q0_[k]);
  }

  int64_t size_;
  double *x_, *q0_;  // halved losses until shift()
};

__global__ void __launch_bounds__(kMaxBlockSize) chi_square_response_kernel(const ChiSquareParams a) {
  BlockOfConcepts concepts(a, a.size <= kHeldConcepts ? dynamic_shared<double>() : a.workspace);
  concepts.write(chi_square::respond(concepts, a.game), a.out);
}

int64_t chi_square_workspace(int64_t size) { return size <= kHeldConcepts ? 0 : 2 * size; }

void launch_chi_square_response(const ChiSquareParams& p, CUstream_st* stream) {
  int block = kWarpSize;
  while (block < kMaxBlockSize && block * kConceptsOfThread < p.size) block *= 2;
  const size_t shared_bytes = p.size <= kHeldConcepts ? 2 * sizeof(double) * static_cast<size_t>(p.size) : 0;
  launch_kernel<chi_square_response_kernel>({1, block, shared_bytes}, stream, p);
}

}  // namespace hrrl::cuda
