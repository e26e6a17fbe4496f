// rank1_dot: cross_bk += sum over g and m of p_bgkm q_bgkm. rank1_argmin: the nearest centre of every example.
//
// - Products and sums are double whatever p and q are: the distance that cross goes into is a difference of nearly
//   equal terms. Products of floats are exact there.
// - M = 1, a linear layer: K lies contiguous, and lanes are clusters. M > 1: lanes are terms of one sum. Memory is
//   visited in its order, group by group; cross_b stays in cache between groups.
// - The two lowest scores of a row do not depend on the order in which they are found. The second visit, for the place
//   of the lowest, finds cross_b in cache and ends at the first cluster that will do.
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

// ---------------------------------------------------------------------------------------------------------------------
// rank1_dot

// cross_k += p_k q_k
template <class scalar_t>
HRRL_INLINE void add_products(const scalar_t* p, const scalar_t* q, double* cross, int64_t clusters) {
  int64_t k = 0;
  for (; k + kDoubles <= clusters; k += kDoubles)
    store(cross + k, load(cross + k) + load_doubles(p + k) * load_doubles(q + k));
  for (; k < clusters; ++k) cross[k] += to_double(p[k]) * to_double(q[k]);
}

// sum_m p_m q_m, in lanes that are still to be added up. At least kDoubles terms: those behind the last whole vector
// are read together with some before them, which the mask `rest` leaves out.
template <class scalar_t>
HRRL_INLINE vdouble dot(const scalar_t* p, const scalar_t* q, int64_t size, vlong rest) {
  constexpr int kChains = 4;  // hide the latency of the additions
  vdouble total[kChains] = {};
  int64_t m = 0;
  for (; m + kChains * kDoubles <= size; m += kChains * kDoubles)
    for (int chain = 0; chain < kChains; ++chain)
      total[chain] += load_doubles(p + m + chain * kDoubles) * load_doubles(q + m + chain * kDoubles);
  for (; m + kDoubles <= size; m += kDoubles) total[0] += load_doubles(p + m) * load_doubles(q + m);
  if (m < size) {
    m = size - kDoubles;
    const vdouble products = load_doubles(p + m) * load_doubles(q + m);
    total[1] += rest ? products : vdouble{};
  }
  return (total[0] + total[1]) + (total[2] + total[3]);
}

// cross_k += sum_m p_km q_km for at least kDoubles terms; kDoubles sums end in one tree of shuffles.
template <class scalar_t>
HRRL_INLINE void add_sums(const scalar_t* p, const scalar_t* q, double* cross, int64_t clusters, int64_t size) {
  vlong rest;
  for (int lane = 0; lane < kDoubles; ++lane) rest[lane] = lane >= kDoubles - size % kDoubles ? -1 : 0;
  int64_t k = 0;
  for (; k + kDoubles <= clusters; k += kDoubles) {
    vdouble rows[kDoubles];
    for (int r = 0; r < kDoubles; ++r) rows[r] = dot(p + (k + r) * size, q + (k + r) * size, size, rest);
    store(cross + k, load(cross + k) + reduce_rows<kDoubles>(rows, Add{}));
  }
  for (; k < clusters; ++k) cross[k] += sum(dot(p + k * size, q + k * size, size, rest));
}

// The same for fewer terms: the products of many sums lie side by side.
template <class scalar_t>
HRRL_INLINE void add_short_sums(const scalar_t* p, const scalar_t* q, double* cross, int64_t clusters, int64_t size) {
  constexpr int64_t kSums = 64;
  double products[kSums * kDoubles];
  for (int64_t first = 0; first < clusters; first += kSums) {
    const int64_t sums = clusters - first < kSums ? clusters - first : kSums, terms = sums * size;
    const scalar_t *left = p + first * size, *right = q + first * size;
    int64_t i = 0;
    for (; i + kDoubles <= terms; i += kDoubles) store(products + i, load_doubles(left + i) * load_doubles(right + i));
    for (; i < terms; ++i) products[i] = to_double(left[i]) * to_double(right[i]);
    for (int64_t k = 0; k < sums; ++k) {
      double total = products[k * size];
      for (int64_t m = 1; m < size; ++m) total += products[k * size + m];
      cross[first + k] += total;
    }
  }
}

template <class scalar_t>
static void rank1_dot_of(const Rank1DotArgs& a, int64_t begin, int64_t end) {
  const int64_t K = a.clusters, M = a.size, G = a.groups;
  for (int64_t b = begin; b < end; ++b) {
    double* cross = a.cross + b * K;
    for (int64_t g = 0; g < G; ++g) {
      const int64_t offset = (b * G + g) * K * M;
      const auto *p = static_cast<const scalar_t*>(a.p) + offset, *q = static_cast<const scalar_t*>(a.q) + offset;
      if (M == 1)
        add_products(p, q, cross, K);
      else if (M < kDoubles)
        add_short_sums(p, q, cross, K, M);
      else
        add_sums(p, q, cross, K, M);
    }
  }
}

void rank1_dot(Dtype dtype, const Rank1DotArgs& args, int64_t begin, int64_t end) {
  dtype == Dtype::kDouble ? rank1_dot_of<double>(args, begin, end) : rank1_dot_of<float>(args, begin, end);
}

// ---------------------------------------------------------------------------------------------------------------------
// rank1_argmin

// Of one example and one centre, or a vector of them: weight S before it is cut off at 0, and the size of the terms
// that it is a difference of, which is what rounding in them is relative to.
template <class real>
struct Score {
  real raw, scale;
};
template <class real>
HRRL_INLINE Score<real> score_of(real cross, real square, real centre_square, real weight) {
  return {weight * ((centre_square - 2.0 * cross) + square), weight * (centre_square + square)};
}
template <class real>
HRRL_INLINE real cut_off(real raw) {
  return raw > 0.0 ? raw : real{};
}
// 0, or NaN where one of them is not finite
template <class real>
HRRL_INLINE real defect(Score<real> s) {
  return (s.raw - s.raw) + (s.scale - s.scale);
}
HRRL_INLINE double min(double a, double b) { return a < b ? a : b; }
HRRL_INLINE double max(double a, double b) { return a > b ? a : b; }

// The lowest score and the next, which may be as low.
template <class real>
struct Lowest {
  real first, second;
  HRRL_INLINE_MEMBER void add(real score) {
    second = min(second, max(first, score));
    first = min(first, score);
  }
};

struct Row {
  const double *cross, *centre_square, *weight;
  double square;
  int64_t clusters;
  HRRL_INLINE_MEMBER Score<vdouble> scores(int64_t k) const {
    return score_of(load(cross + k), square - vdouble{}, load(centre_square + k), load(weight + k));
  }
  HRRL_INLINE_MEMBER Score<double> score(int64_t k) const {
    return score_of(cross[k], square, centre_square[k], weight[k]);
  }
};

// NaNs if a number of the row is not finite.
HRRL_INLINE Lowest<double> find_lowest(const Row& row) {
  constexpr int kChains = 2;  // hide the latency of the comparisons
  const double inf = __builtin_inf();
  const vdouble infinite = vdouble{} + inf;
  Lowest<vdouble> chains[kChains] = {{infinite, infinite}, {infinite, infinite}};
  vdouble defects[kChains] = {};
  int64_t k = 0;
  const auto add = [&](int chain, int64_t at) {
    const Score<vdouble> s = row.scores(at);
    chains[chain].add(cut_off(s.raw));
    defects[chain] += defect(s);
  };
  for (; k + kChains * kDoubles <= row.clusters; k += kChains * kDoubles)
    for (int chain = 0; chain < kChains; ++chain) add(chain, k + chain * kDoubles);
  if (k + kDoubles <= row.clusters) {
    add(0, k);
    k += kDoubles;
  }
  double bad = sum(defects[0] + defects[1]);
  Lowest<double> lowest{inf, inf};
  for (; k < row.clusters; ++k) {
    const Score<double> s = row.score(k);
    lowest.add(cut_off(s.raw));
    bad += defect(s);
  }
  for (const Lowest<vdouble>& chain : chains)
    for (int lane = 0; lane < kDoubles; ++lane) {
      lowest.add(chain.first[lane]);
      lowest.second = min(lowest.second, chain.second[lane]);
    }
  return {lowest.first + bad, lowest.second + bad};
}

// The lowest k within rounding of the best; K if there is none, which negative squares or weights can bring about.
HRRL_INLINE int64_t find_nearest(const Row& row, double best, double rtol) {
  const auto near = [&](auto s) { return cut_off(s.raw) <= best + rtol * s.scale; };
  int64_t k = 0;
  for (; k + kDoubles <= row.clusters; k += kDoubles)
    if (sum(near(row.scores(k))) != 0) break;  // a comparison that holds is -1
  while (k < row.clusters && !near(row.score(k))) ++k;
  return k;
}

void rank1_argmin(const Rank1ArgminArgs& a, int64_t begin, int64_t end) {
  const double nan = __builtin_nan("");
  for (int64_t b = begin; b < end; ++b) {
    const Row row{a.cross + b * a.clusters, a.centre_square, a.weight, a.square[b], a.clusters};
    const Lowest<double> lowest = find_lowest(row);
    const int64_t nearest = lowest.first == lowest.first ? find_nearest(row, lowest.first, a.rtol) : a.clusters;
    if (nearest == a.clusters) {
      a.assignment[b] = -1;
      a.distance[b] = a.gap[b] = nan;
      continue;
    }
    const Score<double> s = row.score(nearest);
    const double score = cut_off(s.raw);
    // The lowest of the others, less its own. Both are taken from the first visit where they can be: a compiler may
    // fuse the product in `score` with a subtraction, and a tie would then not give 0.
    const double ahead = score == lowest.first ? lowest.second - lowest.first : lowest.first - score;
    a.assignment[b] = nearest;
    a.distance[b] = cut_off((row.centre_square[nearest] - 2.0 * row.cross[nearest]) + row.square);
    a.gap[b] = ahead == 0.0 ? 0.0 : ahead / s.scale;
  }
}

}  // namespace hrrl::cpu::HRRL_ISA
