// Pairs of rows: their scores, and what they add to each other in the gradient, in the order of the pairs.
#include "cpu/kernels/score_tile.h"

namespace hrrl::cpu::HRRL_ISA {

template <class scalar_t>
struct Pairs {
  const scalar_t *image, *caption, *weight;
  scalar_t *of_pair, *grad_image, *grad_caption;
  explicit Pairs(const PairArgs& a)
      : image(static_cast<const scalar_t*>(a.image)),
        caption(static_cast<const scalar_t*>(a.caption)),
        weight(static_cast<const scalar_t*>(a.weight)),
        of_pair(static_cast<scalar_t*>(a.of_pair)),
        grad_image(static_cast<scalar_t*>(a.grad_image)),
        grad_caption(static_cast<scalar_t*>(a.grad_caption)) {}
};

HRRL_INLINE float root(float v) { return __builtin_sqrtf(v); }
HRRL_INLINE double root(double v) { return __builtin_sqrt(v); }

// f · g, or ||max(0, g - f)||^2
template <bool kOrder, class scalar_t>
HRRL_INLINE scalar_t product(const scalar_t* f, const scalar_t* g, int64_t size) {
  using vector = vector_of<scalar_t>;
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  vector products = {};
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes) {
    if constexpr (kOrder) {
      const vector beyond = positive(load(g + k) - load(f + k));
      products += beyond * beyond;
    } else {
      products += load(f + k) * load(g + k);
    }
  }
  scalar_t total = sum(products);
  for (; k < size; ++k) {
    if constexpr (kOrder) {
      const scalar_t beyond = g[k] - f[k];
      if (!(beyond <= 0)) total += beyond * beyond;
    } else {
      total += f[k] * g[k];
    }
  }
  return total;
}

template <class scalar_t>
static void scores(const PairArgs& a, int64_t begin, int64_t end) {
  const Pairs<scalar_t> p(a);
  for (int64_t n = begin; n < end; ++n) {
    const scalar_t *f = p.image + a.row[n] * a.size, *g = p.caption + a.column[n] * a.size;
    p.of_pair[n] = a.order ? -root(product<true>(f, g, a.size)) : product<false>(f, g, a.size);
  }
}

// What the rows of a pair are multiplied with: its weight, over the distance for "order"; 0 where that is 0.
template <class scalar_t>
static void scales(const PairArgs& a, int64_t begin, int64_t end) {
  const Pairs<scalar_t> p(a);
  for (int64_t n = begin; n < end; ++n) {
    p.of_pair[n] = a.row[n] < 0 || a.column[n] < 0 ? 0 : p.weight[n];
    if (!a.order || p.of_pair[n] == 0) continue;
    const scalar_t total = product<true>(p.image + a.row[n] * a.size, p.caption + a.column[n] * a.size, a.size);
    p.of_pair[n] = total == 0 ? 0 : p.of_pair[n] / root(total);
  }
}

// Columns [begin, end) of both gradients.
template <bool kOrder, class scalar_t>
static void add_pairs(const PairArgs& a, int64_t begin, int64_t end) {
  using vector = vector_of<scalar_t>;
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  if (begin == end) return;  // of size 0 there is no memory
  const Pairs<scalar_t> p(a);
  const auto clear = [&](scalar_t* grad, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i)
      __builtin_memset(grad + i * a.size + begin, 0, static_cast<size_t>(end - begin) * sizeof(scalar_t));
  };
  clear(p.grad_image, a.images);
  clear(p.grad_caption, a.captions);
  for (int64_t n = 0; n < a.pairs; ++n) {
    const scalar_t scale = p.of_pair[n];
    if (scale == 0) continue;
    const int64_t i = a.row[n] * a.size, c = a.column[n] * a.size;
    const scalar_t *f = p.image + i, *g = p.caption + c;
    scalar_t *to_image = p.grad_image + i, *to_caption = p.grad_caption + c;
    int64_t k = begin;
    for (; k + kLanes <= end; k += kLanes) {
      vector of_image = load(g + k), of_caption = load(f + k);
      if constexpr (kOrder) {
        of_image = positive(of_image - of_caption);
        of_caption = -of_image;
      }
      store(to_image + k, load(to_image + k) + scale * of_image);
      store(to_caption + k, load(to_caption + k) + scale * of_caption);
    }
    for (; k < end; ++k) {
      scalar_t of_image = g[k], of_caption = f[k];
      if constexpr (kOrder) {
        of_image = of_image - of_caption <= 0 ? 0 : of_image - of_caption;
        of_caption = -of_image;
      }
      to_image[k] += scale * of_image;
      to_caption[k] += scale * of_caption;
    }
  }
}

void pair_scores(Dtype dtype, const PairArgs& a, int64_t begin, int64_t end) {
  dtype == Dtype::kDouble ? scores<double>(a, begin, end) : scores<float>(a, begin, end);
}

void pair_scales(Dtype dtype, const PairArgs& a, int64_t begin, int64_t end) {
  dtype == Dtype::kDouble ? scales<double>(a, begin, end) : scales<float>(a, begin, end);
}

void pair_gradients(Dtype dtype, const PairArgs& a, int64_t begin, int64_t end) {
  if (dtype == Dtype::kDouble)
    a.order ? add_pairs<true, double>(a, begin, end) : add_pairs<false, double>(a, begin, end);
  else
    a.order ? add_pairs<true, float>(a, begin, end) : add_pairs<false, float>(a, begin, end);
}

}  // namespace hrrl::cpu::HRRL_ISA
