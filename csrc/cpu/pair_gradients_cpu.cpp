#include <torch/csrc/stable/library.h>

#include <numeric>
#include <vector>

#include "cpu/score_parts.h"
#include "pair_gradients.h"

namespace hrrl {

// Before anything is read or written. A pair with an index below 0 is none.
static void check_indices(const char* name, const Tensor& index, int64_t count) {
  const auto* at = static_cast<const int64_t*>(index.data_ptr());
  for (int64_t n = 0; n < index.size(0); ++n)
    if (at[n] >= count)
      fail<std::out_of_range>("pair_gradients: ", name, " must lie below ", count, ", got ", at[n], " at ", n);
}

std::tuple<Tensor, Tensor> pair_gradients_cpu(const Tensor& image, const Tensor& caption, const Tensor& row,
                                              const Tensor& column, const Tensor& weight, bool order) {
  const PairGradients p = prepare_pair_gradients(image, caption, row, column, weight);
  check_indices("row", p.row, p.images);
  check_indices("column", p.column, p.captions);
  const ScalarType type = p.weight.scalar_type();
  const Tensor f = as_type(p.image, type), g = as_type(p.caption, type);
  const Tensor scale = new_empty(p.weight, {p.pairs}, type);
  const cpu::PairArgs args{f.data_ptr(),
                           g.data_ptr(),
                           static_cast<const int64_t*>(p.row.data_ptr()),
                           static_cast<const int64_t*>(p.column.data_ptr()),
                           p.weight.data_ptr(),
                           scale.data_ptr(),
                           p.grad_image.data_ptr(),
                           p.grad_caption.data_ptr(),
                           p.images,
                           p.captions,
                           p.size,
                           p.pairs,
                           order};
  const cpu::Dtype dtype = cpu::dtype_of(p.weight);
  const cpu::Kernels& kernels = cpu::kernels();
  cpu::parallel_rows(p.pairs, order ? p.size : 0,
                     [&](int64_t begin, int64_t end) { kernels.pair_scales(dtype, args, begin, end); });
  // Threads share out the columns: every entry has its terms in the order of the pairs, on any number of them.
  const int64_t slices = (p.size + cpu::kPairColumns - 1) / cpu::kPairColumns;
  // A slice of a row takes a few loads and stores, and other threads have to fetch it first.
  cpu::parallel_rows(slices, p.pairs + p.images + p.captions, [&](int64_t begin, int64_t end) {
    kernels.pair_gradients(dtype, args, begin * cpu::kPairColumns, std::min(end * cpu::kPairColumns, p.size));
  });
  return {p.grad_image, p.grad_caption};
}

// Row n and row n.
Tensor pair_scores_cpu(const Tensor& image, const Tensor& caption, bool order) {
  constexpr const char* op = "_pair_scores: ";
  check_embeddings(op, image, caption);
  HRRL_CHECK(caption.size(0) == image.size(0), op, "there must be as many captions as images");
  HRRL_CHECK(image.scalar_type() == computed_type(image), op, "image must be float32 or float64");
  const int64_t pairs = image.size(0);
  const Tensor score = new_empty(image, {pairs}, image.scalar_type());
  std::vector<int64_t> place(static_cast<size_t>(pairs));
  std::iota(place.begin(), place.end(), int64_t{0});
  cpu::score_pairs(as_contiguous(image), as_contiguous(caption), place.data(), place.data(), pairs, order,
                   score.data_ptr());
  return score;
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("pair_gradients", TORCH_BOX(&hrrl::pair_gradients_cpu));
  m.impl("_pair_scores", TORCH_BOX(&hrrl::pair_scores_cpu));
}
