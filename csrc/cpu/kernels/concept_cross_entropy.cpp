// The concept-weighted cross-entropy of a few rows at a time and, in the same visit, its gradient.
//
//   l_i = log sum_j exp(z_ij) - (1 - eps) z_iy - eps mean_j z_ij            eps: label smoothing
//   d loss / d z_ij = w_i / B (softmax(z_i)_j - (1 - eps) [j = y] - eps / C)
//   w_i / B = weight_k,  k = concept_i
//
// - q is known before the loss, so the gradient leaves with the forward pass and the logits are read from memory once;
//   the passes over a group of rows hit the caches.
// - Within a row the lanes of a vector are classes. What is one number per row (maximum, sum, logarithm, weight) is
//   computed for kWidth rows at once, a lane each: at ten classes that is most of the work.
// - Float is enough: with z shifted by its maximum no two terms of l_i have opposite signs.
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

constexpr float kInfinity = __builtin_inff();

// Up to kWidth neighbouring rows of [B, C].
template <class scalar_t>
struct Rows {
  const scalar_t* logits;  // of the first
  int64_t classes, whole;  // whole: those in whole vectors
  int64_t readable;        // rows whose last vector may be read beyond the row, because more of the array follows
  vint keep;               // of that vector

  HRRL_INLINE_MEMBER Rows(const CrossEntropyArgs& args, int64_t first)
      : logits(static_cast<const scalar_t*>(args.logits) + first * args.classes),
        classes(args.classes),
        whole(classes - classes % kWidth),
        readable(((args.batch - first + 1) * classes - whole - kWidth) / classes),
        keep(lane_numbers() < static_cast<int32_t>(classes - whole)) {}
  HRRL_INLINE_MEMBER const scalar_t* row(int r) const { return logits + r * classes; }
  // The classes after the whole vectors, filled up with -inf. At the very end of the array they are put together one by
  // one.
  HRRL_INLINE_MEMBER vfloat tail(int r) const {
    const vfloat nothing = broadcast(-kInfinity);
    if (r < readable) return keep ? load(row(r) + whole) : nothing;
    vfloat result = nothing;
    for (int64_t j = whole; j < classes; ++j) result[j - whole] = to_float(row(r)[j]);
    return result;
  }
};

// The maximum of each row, in the lanes of one vector. A NaN may lose, but z - max is NaN with it and so is everything
// after.
template <class scalar_t>
HRRL_INLINE vfloat find_maxima(const Rows<scalar_t>& rows, int count) {
  vfloat largest[kWidth];
  for (int r = 0; r < count; ++r) {
    vfloat found = rows.tail(r);
    for (int64_t j = 0; j < rows.whole; j += kWidth) found = max(load(rows.row(r) + j), found);
    largest[r] = found;
  }
  return reduce_rows(largest, count, Larger{});
}

struct Sums {
  vfloat exp, shifted;  // sum_j exp(z_j - max) and sum_j (z_j - max), a row per lane
};

// Fills exps, `pitch` floats per row, with exp(z_j - max).
template <bool kSmoothing, class scalar_t>
HRRL_INLINE Sums exponentiate(const Rows<scalar_t>& rows, int count, vfloat maxima, float* exps, int64_t pitch) {
  vfloat exp_sum[kWidth], shifted_sum[kWidth];
  float row_max[kWidth];
  store(row_max, maxima);
  for (int r = 0; r < count; ++r) {
    vfloat sum = {}, shifted_total = {};
    const auto visit = [&](vfloat shifted, int64_t j, vfloat counted) {
      const vfloat e = exp_nonpositive(shifted);
      store(exps + r * pitch + j, e);
      sum += e;
      if (kSmoothing) shifted_total += counted;
    };
    for (int64_t j = 0; j < rows.whole; j += kWidth) {
      const vfloat shifted = load(rows.row(r) + j) - row_max[r];
      visit(shifted, j, shifted);
    }
    if (rows.whole < rows.classes) {
      const vfloat shifted = rows.tail(r) - row_max[r];
      visit(shifted, rows.whole, rows.keep ? shifted : vfloat{});
    }
    exp_sum[r] = sum;
    shifted_sum[r] = shifted_total;
  }
  return {reduce_rows(exp_sum, count, Add{}), kSmoothing ? reduce_rows(shifted_sum, count, Add{}) : vfloat{}};
}

// What a group of rows needs from its labels. Arrays, since a lane of a vector is expensive to write alone.
struct Labels {
  int64_t target[kWidth];
  float logit[kWidth], exp[kWidth];  // z_iy and exp(z_iy - max)
  float weight[kWidth];
};

// Whether all of them are in range.
template <class scalar_t>
HRRL_INLINE bool read_labels(const CrossEntropyArgs& args, int64_t first, const Rows<scalar_t>& rows, int count,
                             const float* exps, int64_t pitch, Labels& labels) {
  bool valid = true;
  for (int r = 0; r < count; ++r) {
    const int64_t y = args.target[first + r], k = args.concept_[first + r];
    const bool in_range = static_cast<uint64_t>(y) < static_cast<uint64_t>(args.classes) &&
                          static_cast<uint64_t>(k) < static_cast<uint64_t>(args.concepts);
    valid &= in_range;
    const int64_t target = in_range ? y : 0;
    labels.target[r] = target;
    labels.logit[r] = to_float(rows.row(r)[target]);
    labels.exp[r] = exps[r * pitch + target];
    labels.weight[r] = in_range ? static_cast<float>(args.weight[k]) : 0.0f;
  }
  return valid;
}

template <bool kSmoothing, class scalar_t, class grad_t>
static bool cross_entropy_rows(const CrossEntropyArgs& args, int64_t begin, int64_t end, float* exps) {
  const int64_t classes = args.classes, pitch = (classes + kWidth - 1) / kWidth * kWidth;
  const int64_t group = rows_at_once(classes) < kWidth ? rows_at_once(classes) : kWidth;
  const auto eps = static_cast<float>(args.label_smoothing), share = eps / static_cast<float>(classes);
  auto* example_loss = static_cast<float*>(args.example_loss);
  bool valid = true;
  Labels labels = {};

  for (int64_t i = begin; i < end; i += group) {
    const int count = static_cast<int>(end - i < group ? end - i : group);
    const Rows<scalar_t> rows(args, i);
    const vfloat maxima = find_maxima(rows, count);
    const Sums sums = exponentiate<kSmoothing>(rows, count, maxima, exps, pitch);
    valid &= read_labels(args, i, rows, count, exps, pitch, labels);

    float loss[kWidth];
    store(loss, log_from_one(sums.exp) - (1.0f - eps) * (load(labels.logit) - maxima) -
                    (kSmoothing ? share * sums.shifted : vfloat{}));
    for (int r = 0; r < count; ++r) example_loss[i + r] = loss[r];
    if (!args.grad_logits) continue;

    const vfloat weight = load(labels.weight);
    float scale[kWidth], uniform[kWidth], at_target[kWidth];
    store(scale, weight / sums.exp);
    store(uniform, weight * share);
    // p_y - 1 as minus the sum of the others would be exact for a confident row; this is as exact as eager's.
    store(at_target, weight * (load(labels.exp) / sums.exp - (1.0f - eps) - share));
    for (int r = 0; r < count; ++r) {
      grad_t* grad = static_cast<grad_t*>(args.grad_logits) + (i + r) * classes;
      const float* e = exps + r * pitch;
      // The last vector may spill into the rows below, as long as they are this call's, which writes them next.
      const int64_t vectors = (end - i - r) * classes >= pitch ? pitch : rows.whole;
      int64_t j = 0;
      for (; j < vectors; j += kWidth) store(grad + j, load(e + j) * scale[r] - uniform[r]);
      for (; j < classes; ++j) assign(grad[j], e[j] * scale[r] - uniform[r]);
      assign(grad[labels.target[r]], at_target[r]);
    }
  }
  return valid;
}

static bool cross_entropy_rows_double(const CrossEntropyArgs& args, int64_t begin, int64_t end, double* exps) {
  const auto* logits = static_cast<const double*>(args.logits);
  auto* example_loss = static_cast<double*>(args.example_loss);
  auto* grad_logits = static_cast<double*>(args.grad_logits);
  const int64_t classes = args.classes;
  const double eps = args.label_smoothing;

  bool valid = true;
  for (int64_t i = begin; i < end; ++i) {
    const double* z = logits + i * classes;
    const int64_t target = args.target[i], k = args.concept_[i];
    if (target < 0 || target >= classes || k < 0 || k >= args.concepts) {
      valid = false;
      continue;
    }
    double row_max = z[0];
    for (int64_t j = 1; j < classes; ++j) row_max = z[j] > row_max ? z[j] : row_max;
    double total = 0.0, shifted_total = 0.0;
    for (int64_t j = 0; j < classes; ++j) {
      exps[j] = __builtin_exp(z[j] - row_max);
      total += exps[j];
      shifted_total += z[j] - row_max;
    }
    double loss = __builtin_log(total) - (1.0 - eps) * (z[target] - row_max);
    if (eps > 0.0) loss -= eps * shifted_total / static_cast<double>(classes);
    example_loss[i] = loss;
    if (!grad_logits) continue;

    const double weight = args.weight[k];
    for (int64_t j = 0; j < classes; ++j)
      grad_logits[i * classes + j] =
          weight * (exps[j] / total - (j == target ? 1.0 - eps : 0.0) - eps / static_cast<double>(classes));
  }
  return valid;
}

template <class scalar_t>
struct GradOf {
  using type = scalar_t;
};
template <>
struct GradOf<half> {
  using type = float;  // half has no room for p / B before a loss scale (csrc/concept_cross_entropy.h)
};

bool concept_cross_entropy(Dtype dtype, const CrossEntropyArgs& args, int64_t begin, int64_t end, double* scratch) {
  return dispatch(dtype, [&](auto logit) {
    using scalar_t = decltype(logit);
    if constexpr (sizeof(scalar_t) == sizeof(double)) {
      return cross_entropy_rows_double(args, begin, end, scratch);
    } else {
      using grad_t = typename GradOf<scalar_t>::type;
      auto* exps = reinterpret_cast<float*>(scratch);
      return args.label_smoothing > 0.0 ? cross_entropy_rows<true, scalar_t, grad_t>(args, begin, end, exps)
                                        : cross_entropy_rows<false, scalar_t, grad_t>(args, begin, end, exps);
    }
  });
}

}  // namespace hrrl::cpu::HRRL_ISA
