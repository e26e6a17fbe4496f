#include <torch/csrc/stable/library.h>

#include <algorithm>
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

// concept_loss_k = 1/B sum_{i in k} (N / N_k) l_i and loss = sum_k q_k concept_loss_k, in double and in the order of
// the batch: the same bits for any number of threads.
void reduce(const ConceptCrossEntropy& c, const cpu::Doubles& q, const cpu::Doubles& count, double total) {
  const auto* concept_ = static_cast<const int64_t*>(c.concept_.data_ptr());
  std::vector<double> sums(static_cast<size_t>(c.concepts), 0.0);
  cpu::visit(c.example_loss, [&](const auto* example_loss) {
    for (int64_t i = 0; i < c.batch; ++i) sums[concept_[i]] += static_cast<double>(example_loss[i]);
  });
  double loss = 0.0;
  for (int64_t k = 0; k < c.concepts; ++k) {
    if (sums[k] == 0.0) continue;  // absent: 0, whatever N_k is
    sums[k] /= count[k] / total * static_cast<double>(c.batch);
    loss += q[k] * sums[k];
  }
  cpu::visit(c.concept_loss, [&](auto* out) { std::copy(sums.begin(), sums.end(), out); });
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
  check_range("target", targets, c.batch, c.classes);
  check_range("concept", concepts, c.batch, c.concepts);
  for (int64_t i = 0; i < c.batch; ++i)
    HRRL_CHECK(count[concepts[i]] > 0,
               "concept_cross_entropy: concept_count must be positive where the batch has examples,"
               " got ",
               count[concepts[i]], " for concept ", concepts[i], "; count the images of the training set");

  double total = 0.0;  // N; exact for whole counts
  for (int64_t k = 0; k < c.concepts; ++k) total += count[k];

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
                                   label_smoothing};
  const cpu::Dtype dtype = cpu::dtype_of(c.logits);
  const auto kernel = cpu::kernels().concept_cross_entropy;
  cpu::parallel_rows(c.batch, 8 * c.classes, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(c.classes) + 8);  // whole vectors are written to it, as floats
    kernel(dtype, args, begin, end, scratch.data());
  });
  reduce(c, q_values, count, total);
  return c.result();
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("concept_cross_entropy", TORCH_BOX(&hrrl::concept_cross_entropy_cpu));
}
