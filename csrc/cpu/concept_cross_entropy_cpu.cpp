#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "concept_cross_entropy.h"
#include "cpu/dtype.h"

namespace hrrl {

namespace {

void check_range(const char* name, const int64_t* ids, int64_t batch, int64_t limit) {
  for (int64_t i = 0; i < batch; ++i)
    if (ids[i] < 0 || ids[i] >= limit)
      fail<std::out_of_range>("concept_cross_entropy: ", name, " must lie in [0, ", limit, "), got ", ids[i],
                              " at example ", i);
}

void check_counts(const int64_t* concept_, int64_t batch, const cpu::Doubles& count) {
  for (int64_t i = 0; i < batch; ++i)
    HRRL_CHECK(count[concept_[i]] > 0,
               "concept_cross_entropy: concept_count must be positive where the batch has examples, got ",
               count[concept_[i]], " for concept ", concept_[i], "; count the images of the training set");
}

// sum_{i in k} l_i in double, in an order that depends on the batch alone: the same bits for any number of threads.
// Where the batch is much larger than K, every fourth example goes to the same of four sums, since an addition that has
// to wait for the one before takes several times as long.
std::vector<double> sums_by_concept(const ConceptCrossEntropy& c) {
  const int64_t sums = 16 * c.concepts <= c.batch ? 4 : 1;
  const auto* concept_ = static_cast<const int64_t*>(c.concept_.data_ptr());
  std::vector<double> sum(static_cast<size_t>(sums * c.concepts), 0.0);
  cpu::visit(c.example_loss, [&](const auto* example_loss) {
    for (int64_t i = 0; i < c.batch; ++i)
      sum[sums * concept_[i] + (i & (sums - 1))] += static_cast<double>(example_loss[i]);
  });
  for (int64_t k = 0; k < c.concepts; ++k) {
    const double* part = &sum[sums * k];
    sum[k] = sums == 4 ? (part[0] + part[1]) + (part[2] + part[3]) : part[0];
  }
  return sum;
}

// concept_loss_k = 1/B sum_{i in k} (N / N_k) l_i and loss = sum_k q_k concept_loss_k
void reduce(const ConceptCrossEntropy& c, const cpu::Doubles& q, const cpu::Doubles& count, double total) {
  std::vector<double> sum = sums_by_concept(c);
  double loss = 0.0;
  for (int64_t k = 0; k < c.concepts; ++k) {
    if (sum[k] == 0.0) continue;  // absent: 0, whatever N_k is
    sum[k] /= count[k] / total * static_cast<double>(c.batch);
    loss += q[k] * sum[k];
  }
  cpu::visit(c.concept_loss, [&](auto* out) { std::copy_n(sum.begin(), c.concepts, out); });
  cpu::visit(c.loss, [&](auto* out) { *out = static_cast<std::decay_t<decltype(*out)>>(loss); });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> concept_cross_entropy_cpu(const Tensor& logits, const Tensor& target,
                                                                     const Tensor& concept_, const Tensor& q,
                                                                     const Tensor& concept_count,
                                                                     double label_smoothing, bool with_grad) {
  const ConceptCrossEntropy c =
      prepare_concept_cross_entropy(logits, target, concept_, q, concept_count, label_smoothing, with_grad);
  const auto* targets = static_cast<const int64_t*>(c.target.data_ptr());
  const auto* concepts = static_cast<const int64_t*>(c.concept_.data_ptr());
  const cpu::Doubles q_values(c.q), count(c.concept_count);

  double total = 0.0;  // N; exact for whole counts
  bool all_counted = true;
  for (int64_t k = 0; k < c.concepts; ++k) {
    total += count[k];
    all_counted &= count[k] > 0;
  }
  // q_k / p_k and not q_k (N / N_k): q = q0 = N_k / N then gives exactly 1.
  std::vector<double> weight(static_cast<size_t>(c.concepts));
  for (int64_t k = 0; k < c.concepts; ++k) weight[k] = q_values[k] / (count[k] / total) / static_cast<double>(c.batch);

  const cpu::CrossEntropyArgs args{c.logits.data_ptr(),
                                   targets,
                                   concepts,
                                   weight.data(),
                                   c.example_loss.data_ptr(),
                                   with_grad ? c.grad_logits.data_ptr() : nullptr,
                                   c.batch,
                                   c.classes,
                                   c.concepts,
                                   label_smoothing};
  const cpu::Dtype dtype = cpu::dtype_of(c.logits);
  const auto kernel = cpu::kernels().concept_cross_entropy;
  std::atomic<bool> valid{true};
  cpu::parallel_rows(c.batch, 8 * c.classes, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<double[]> scratch(new double[cpu::cross_entropy_scratch(c.classes)]);
    if (!kernel(dtype, args, begin, end, scratch.get())) valid = false;
  });
  if (!valid) {
    check_range("target", targets, c.batch, c.classes);
    check_range("concept", concepts, c.batch, c.concepts);
  }
  if (!all_counted) check_counts(concepts, c.batch, count);
  reduce(c, q_values, count, total);
  return c.result();
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("concept_cross_entropy", TORCH_BOX(&hrrl::concept_cross_entropy_cpu));
}
