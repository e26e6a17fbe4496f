#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/tensor.h"
#include "cpu/score_parts.h"

namespace hrrl {

namespace {

constexpr int64_t kPartRows = 32;

// Two rows of a side of the scores: of what is above the first bound, and of what reaches the second.
void check_side(const char* name, const Tensor& t, int64_t count, ScalarType type) {
  constexpr const char* op = "_count_scores: ";
  HRRL_CHECK(t.dim() == 2 && t.size(0) == 2 && t.size(1) == count, op, name, " must have shape [2, ", count, "], got ",
             shape(t));
  HRRL_CHECK(t.scalar_type() == type, op, name,
             type == ScalarType::Long ? " must be int64" : " must be of the dtype of score");
  HRRL_CHECK(count <= 1 || t.stride(1) == 1, op, name, " must have rows without gaps");
}

template <class T>
T* row(const Tensor& t, int64_t at) {
  return static_cast<T*>(t.data_ptr()) + at * t.stride(0);
}

template <class scalar_t, class id>
void count(const Tensor& score, const Tensor& image_bounds, const Tensor& caption_bounds, const Tensor& image_counts,
           const Tensor& caption_counts) {
  const int64_t captions = score.size(1);
  const cpu::CountArgs args{score.data_ptr(),
                            {row<scalar_t>(image_bounds, 0), row<scalar_t>(image_bounds, 1)},
                            {row<scalar_t>(caption_bounds, 0), row<scalar_t>(caption_bounds, 1)},
                            {row<int64_t>(image_counts, 0), row<int64_t>(image_counts, 1)},
                            captions};
  const cpu::Parts parts(score.size(0), kPartRows);
  std::vector<id> of_captions(static_cast<size_t>(parts.count * 2 * captions));
  const Dtype dtype = cpu::dtype_of(score);
  const auto kernel = cpu::kernels().count_scores;
  cpu::parallel_rows(parts.count, kPartRows * captions, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      kernel(dtype, args, {parts.begin(part), parts.begin(part + 1), of_captions.data() + part * 2 * captions});
  });
  for (int64_t part = 0; part < parts.count; ++part)
    for (int64_t bound = 0; bound < 2; ++bound) {
      int64_t* total = row<int64_t>(caption_counts, bound);
      const id* found = of_captions.data() + (part * 2 + bound) * captions;
      for (int64_t j = 0; j < captions; ++j) total[j] += found[j];
    }
}

}  // namespace

void count_scores_cpu(const Tensor& score, const Tensor& image_bounds, const Tensor& caption_bounds,
                      const Tensor& image_counts, const Tensor& caption_counts) {
  const ScalarType type = score.scalar_type();
  HRRL_CHECK(score.dim() == 2 && score.is_contiguous() && (type == ScalarType::Float || type == ScalarType::Double),
             "_count_scores: score must be [I, C], contiguous, float32 or float64, got ", shape(score));
  check_side("image_bounds", image_bounds, score.size(0), type);
  check_side("caption_bounds", caption_bounds, score.size(1), type);
  check_side("image_counts", image_counts, score.size(0), ScalarType::Long);
  check_side("caption_counts", caption_counts, score.size(1), ScalarType::Long);
  const auto run = type == ScalarType::Double ? count<double, int64_t> : count<float, int32_t>;
  run(score, image_bounds, caption_bounds, image_counts, caption_counts);
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) { m.impl("_count_scores", TORCH_BOX(&hrrl::count_scores_cpu)); }
