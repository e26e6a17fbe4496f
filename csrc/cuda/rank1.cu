// rank1_dot: cross_bk += sum over g and m of p_bgkm q_bgkm. rank1_argmin: the nearest centre of every example.
//
// - Products and sums are double whatever p and q are, as on the CPU and for the same reason.
// - M = 1, a linear layer: a thread per (b, k), neighbours in k. M > 1: a team per (b, k), of 8 lanes, a warp or a
//   block by the number of terms in a sum. Never by B or K: an example has the same bits in any batch.
// - The two lowest scores of a row do not depend on the order in which they are found: these are the scores of the CPU.
//   The second visit, for the place of the lowest, reads cross from cache.
#include <cmath>

#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

constexpr int kRank1Block = 256;
constexpr int kFewLanes = 8;          // of a warp, for a short row
constexpr int64_t kFewTerms = 64;     // the longest row of such a team
constexpr int64_t kWarpTerms = 1024;  // of a warp; a block takes what is longer

// ---------------------------------------------------------------------------------------------------------------------
// rank1_dot

template <class scalar_t>
__global__ void __launch_bounds__(kRank1Block) rank1_products_kernel(const Rank1DotParams a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRank1Block + threadIdx.x, clusters = a.clusters;
  if (i >= a.batch * clusters) return;
  // The first group of example b begins where b rows of G groups end.
  const int64_t first = a.groups == 1 ? i : i + i / clusters * (a.groups - 1) * clusters;
  const auto *p = static_cast<const scalar_t*>(a.p) + first, *q = static_cast<const scalar_t*>(a.q) + first;
  double total = a.cross[i];
#pragma unroll 4
  for (int64_t g = 0; g < a.groups; ++g)
    total += static_cast<double>(p[g * clusters]) * static_cast<double>(q[g * clusters]);
  a.cross[i] = total;
}

// A team per (b, k). A pack's places have a sum each: additions that need not wait for each other.
template <class scalar_t, int kVec, class Team>
__global__ void __launch_bounds__(kRank1Block) rank1_dot_kernel(const Rank1DotParams a) {
  using Vec = Pack<scalar_t, kVec>;
  const int64_t row = Team::index();
  if (row >= a.batch * a.clusters) return;  // whole teams leave
  const int64_t packs = a.size / kVec, step = a.clusters * packs;
  const int64_t first = row * packs + row / a.clusters * (a.groups - 1) * step;
  const auto *p = static_cast<const Vec*>(a.p) + first, *q = static_cast<const Vec*>(a.q) + first;
  double total[kVec] = {};
  for (int64_t g = 0; g < a.groups; ++g, p += step, q += step)
#pragma unroll 4
    for (int64_t m = Team::rank(); m < packs; m += Team::size()) {
      const Vec left = p[m], right = q[m];
#pragma unroll
      for (int e = 0; e < kVec; ++e)
        total[e] += static_cast<double>(left.value[e]) * static_cast<double>(right.value[e]);
    }
#pragma unroll
  for (int e = 1; e < kVec; ++e) total[0] += total[e];
  const double sum = Team::reduce(total[0], Sum{});
  if (Team::rank() == 0) a.cross[row] += sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// rank1_argmin

// weight S before it is cut off at 0, and the size of the terms that it is a difference of.
struct Score {
  double raw, scale;
  __device__ double value() const { return raw > 0.0 ? raw : 0.0; }
  // 0, or NaN where one of them is not finite
  __device__ double defect() const { return (raw - raw) + (scale - scale); }
};

// The lowest score of a row and the next, which may be as low.
struct Lowest {
  double first, second, defect;
  __device__ void add(Score s) {
    const double value = s.value();
    second = Min{}(second, Max{}(first, value));
    first = Min{}(first, value);
    defect += s.defect();
  }
};
struct Merge {
  __device__ Lowest operator()(Lowest a, Lowest b) const {
    return {Min{}(a.first, b.first), Min{}(Max{}(a.first, b.first), Min{}(a.second, b.second)), a.defect + b.defect};
  }
};
__device__ inline Lowest shuffle_xor(unsigned mask, Lowest v, int offset) {
  return {shuffle_xor(mask, v.first, offset), shuffle_xor(mask, v.second, offset), shuffle_xor(mask, v.defect, offset)};
}

// A team per example.
template <class Team>
__global__ void __launch_bounds__(kRank1Block) rank1_argmin_kernel(const Rank1ArgminParams a) {
  const int64_t b = Team::index(), clusters = a.clusters;
  if (b >= a.batch) return;  // whole teams leave
  const double* cross = a.cross + b * clusters;
  const double square = a.square[b];
  const auto squared = [&](int64_t k) { return (a.centre_square[k] - 2.0 * cross[k]) + square; };
  const auto score = [&](int64_t k) {
    return Score{a.weight[k] * squared(k), a.weight[k] * (a.centre_square[k] + square)};
  };

  Lowest lowest{HUGE_VAL, HUGE_VAL, 0.0};
#pragma unroll 4
  for (int64_t k = Team::rank(); k < clusters; k += Team::size()) lowest.add(score(k));
  lowest = Team::reduce(lowest, Merge{});

  int64_t nearest = clusters;  // stays where no score is within rounding: negative squares or weights
  if (lowest.defect == 0.0) {  // the same in the whole team
    for (int64_t k = Team::rank(); k < clusters && nearest == clusters; k += Team::size()) {
      const Score s = score(k);
      if (s.value() <= lowest.first + a.rtol * s.scale) nearest = k;
    }
    nearest = Team::reduce(nearest, Min{});
  }
  if (Team::rank() != 0) return;
  if (nearest == clusters) {
    a.assignment[b] = -1;
    a.distance[b] = a.gap[b] = NAN;
    return;
  }
  const Score s = score(nearest);
  // The lowest of the others, less its own. Both are taken from the first visit where they can be: a compiler may fuse
  // the product in `s` with a subtraction, and a tie would then not give 0.
  const double ahead = s.value() == lowest.first ? lowest.second - lowest.first : lowest.first - s.value();
  const double distance = squared(nearest);
  a.assignment[b] = nearest;
  a.distance[b] = distance > 0.0 ? distance : 0.0;
  a.gap[b] = ahead == 0.0 ? 0.0 : ahead / s.scale;
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

// Calls f(Type<Team>{}, blocks) with the team that a row of so many terms is worth.
template <class F>
static void with_team(int64_t terms, int64_t rows, F f) {
  if (terms <= kFewTerms)
    f(Type<LaneTeam<kFewLanes>>{}, ceil_div(rows, kRank1Block / kFewLanes));
  else if (terms <= kWarpTerms)
    f(Type<LaneTeam<kWarpSize>>{}, ceil_div(rows, kRank1Block / kWarpSize));
  else
    f(Type<BlockOf<kRank1Block>>{}, rows);
}

template <class scalar_t, int kVec>
static void launch_sums(const Rank1DotParams& p, CUstream_st* stream) {
  with_team(p.groups * p.size, p.batch * p.clusters, [&](auto type, int64_t grid) {
    using Team = typename decltype(type)::type;
    launch_kernel<rank1_dot_kernel<scalar_t, kVec, Team>>({grid, kRank1Block}, stream, p);
  });
}

template <class scalar_t>
static void launch_dot(const Rank1DotParams& p, CUstream_st* stream) {
  constexpr int kVec = kPackSize<scalar_t>;
  if (p.size == 1)
    launch_kernel<rank1_products_kernel<scalar_t>>({ceil_div(p.batch * p.clusters, kRank1Block), kRank1Block}, stream,
                                                   p);
  else if (p.size % kVec == 0 && is_aligned(p.p, kPackBytes) && is_aligned(p.q, kPackBytes))
    launch_sums<scalar_t, kVec>(p, stream);
  else
    launch_sums<scalar_t, 1>(p, stream);
}

void launch_rank1_dot(Dtype dtype, const Rank1DotParams& p, CUstream_st* stream) {
  dtype == Dtype::kDouble ? launch_dot<double>(p, stream) : launch_dot<float>(p, stream);
}

void launch_rank1_argmin(const Rank1ArgminParams& p, CUstream_st* stream) {
  with_team(p.clusters, p.batch, [&](auto type, int64_t grid) {
    using Team = typename decltype(type)::type;
    launch_kernel<rank1_argmin_kernel<Team>>({grid, kRank1Block}, stream, p);
  });
}

}  // namespace hrrl::cuda
