// One row of the concept-weighted cross-entropy at a time: the loss and, in the same visit, its gradient.
//
//   l_i = log sum_j exp(z_ij) - (1 - eps) z_iy - eps mean_j z_ij            eps: label smoothing
//   d loss / d z_ij = w_i / B (softmax(z_i)_j - (1 - eps) [j = y] - eps / C)
//   w_i / B = weight_k,  k = concept_i
//
// - q is known before the loss, so the gradient leaves with the forward pass and the logits are read from memory once;
//   the three passes over a row hit the first-level cache.
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

struct Row {
  double log_sum;  // log of exp_sum
  double exp_sum;  // sum_j exp(z_j - max)
  double mean;     // of z_j - max
  float max;
};

constexpr float kInfinity = __builtin_inff();

// The last `count` < kWidth classes of a row, filled up with -inf. Where more of the array follows (`spare` elements
// from z on) a whole vector is read and cut; at the very end it is put together one by one.
template <class scalar_t>
HRRL_INLINE vfloat load_tail(const scalar_t* z, int64_t count, int64_t spare) {
  float lanes[kWidth];
  if (spare < kWidth) {
    for (int lane = 0; lane < kWidth; ++lane) lanes[lane] = lane < count ? to_float(z[lane]) : -kInfinity;
    return load(lanes);
  }
  for (int lane = 0; lane < kWidth; ++lane) lanes[lane] = static_cast<float>(lane);
  return load(lanes) < static_cast<float>(count) ? load(z) : broadcast(-kInfinity);
}

// Fills exps (a multiple of kWidth) with exp(z_j - max) and returns what the loss needs; their sum is exp(log_sum).
template <class scalar_t>
HRRL_INLINE Row softmax_terms(const scalar_t* z, int64_t classes, int64_t spare, bool smoothing, float* exps) {
  const int64_t whole = classes - classes % kWidth, rest = classes - whole;
  const vfloat tail = rest ? load_tail(z + whole, rest, spare - whole) : broadcast(-kInfinity);

  vfloat largest = tail;
  for (int64_t j = 0; j < whole; j += kWidth) largest = max(load(z + j), largest);
  const float row_max = max(largest);

  // A NaN may lose the maximum, but z - max is NaN with it and so is everything after.
  vfloat total = {};
  vdouble shifted_total = {};
  for (int64_t j = 0; j < whole; j += kWidth) {
    const vfloat shifted = load(z + j) - row_max;
    const vfloat e = exp_nonpositive(shifted);
    store(exps + j, e);
    total += e;
    if (smoothing) shifted_total += low(shifted) + high(shifted);
  }
  double sum_of_shifted = smoothing ? sum(shifted_total) : 0.0;
  if (rest) {
    const vfloat shifted = tail - row_max;
    const vfloat e = exp_nonpositive(shifted);
    store(exps + whole, e);
    total += e;
    if (smoothing)
      for (int64_t j = 0; j < rest; ++j) sum_of_shifted += shifted[j];
  }
  const float exp_sum = sum(total);
  return {__builtin_logf(exp_sum), exp_sum, sum_of_shifted / static_cast<double>(classes), row_max};
}

template <class scalar_t, class grad_t>
static void cross_entropy_rows(const CrossEntropyArgs& args, int64_t begin, int64_t end, float* exps) {
  const auto* logits = static_cast<const scalar_t*>(args.logits);
  auto* example_loss = static_cast<float*>(args.example_loss);
  auto* grad_logits = static_cast<grad_t*>(args.grad_logits);
  const int64_t classes = args.classes;
  const double eps = args.label_smoothing;

  for (int64_t i = begin; i < end; ++i) {
    const scalar_t* z = logits + i * classes;
    const int64_t target = args.target[i], k = args.concept_[i];
    const Row row = softmax_terms(z, classes, (args.batch - i) * classes, eps > 0.0, exps);
    const double target_logit = static_cast<double>(to_float(z[target]) - row.max);
    double loss = row.log_sum - (1.0 - eps) * target_logit;
    if (eps > 0.0) loss -= eps * row.mean;
    example_loss[i] = static_cast<float>(loss);
    if (!grad_logits) continue;

    const double weight = args.weight[k];
    const float scale = static_cast<float>(weight / row.exp_sum);
    const float uniform = static_cast<float>(weight * eps / static_cast<double>(classes));
    grad_t* grad = grad_logits + i * classes;
    int64_t j = 0;
    for (; j + kWidth <= classes; j += kWidth) store(grad + j, load(exps + j) * scale - uniform);
    for (; j < classes; ++j) assign(grad[j], exps[j] * scale - uniform);
    // p_y - 1 as minus the sum of the others would be exact for a confident row; this is as exact as eager's.
    assign(grad[target], static_cast<float>(weight * (static_cast<double>(exps[target]) / row.exp_sum - (1.0 - eps) -
                                                      eps / static_cast<double>(classes))));
  }
}

static void cross_entropy_rows_double(const CrossEntropyArgs& args, int64_t begin, int64_t end, double* exps) {
  const auto* logits = static_cast<const double*>(args.logits);
  auto* example_loss = static_cast<double*>(args.example_loss);
  auto* grad_logits = static_cast<double*>(args.grad_logits);
  const int64_t classes = args.classes;
  const double eps = args.label_smoothing;

  for (int64_t i = begin; i < end; ++i) {
    const double* z = logits + i * classes;
    const int64_t target = args.target[i], k = args.concept_[i];
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
}

void concept_cross_entropy(Dtype dtype, const CrossEntropyArgs& args, int64_t begin, int64_t end, double* scratch) {
  auto* exps = reinterpret_cast<float*>(scratch);
  switch (dtype) {
    case Dtype::kFloat:
      return cross_entropy_rows<float, float>(args, begin, end, exps);
    case Dtype::kDouble:
      return cross_entropy_rows_double(args, begin, end, scratch);
    case Dtype::kHalf:
      return cross_entropy_rows<half, float>(args, begin, end, exps);
    case Dtype::kBFloat16:
      return cross_entropy_rows<bfloat16, bfloat16>(args, begin, end, exps);
  }
}

}  // namespace hrrl::cpu::HRRL_ISA
