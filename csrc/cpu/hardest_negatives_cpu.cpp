#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/score_parts.h"
#include "hardest_negatives.h"

namespace hrrl {

namespace {

// What every part found of `count` rows or columns.
template <class scalar_t>
class Found {
 public:
  Found(int64_t parts, int64_t count)
      : parts_(parts),
        count_(count),
        score_(static_cast<size_t>(parts * count), -std::numeric_limits<scalar_t>::infinity()),
        index_(static_cast<size_t>(parts * count), -1) {}

  scalar_t* score(int64_t part) { return score_.data() + part * count_; }
  int64_t* index(int64_t part) { return index_.data() + part * count_; }

  // Parts are in the order of their numbers: the first of equal ones is the lowest.
  void write(bool order, scalar_t* score, int64_t* index) const {
    for (int64_t i = 0; i < count_; ++i) {
      scalar_t best = -std::numeric_limits<scalar_t>::infinity();
      int64_t whose = -1;
      for (int64_t part = 0; part < parts_; ++part) {
        const scalar_t found = score_[part * count_ + i];
        if (found > best || std::isnan(found)) {
          best = found;
          whose = index_[part * count_ + i];
        }
      }
      score[i] = order ? -std::sqrt(-best) : best;
      index[i] = std::isnan(best) ? -1 : whose;
    }
  }

 private:
  int64_t parts_, count_;
  std::vector<scalar_t> score_;
  std::vector<int64_t> index_;
};

template <class scalar_t>
void find_hardest(const HardestNegatives& h, bool order) {
  const Tensor image = as_type(h.image, h.caption_score.scalar_type()),
               caption = as_type(h.caption, h.caption_score.scalar_type());
  const cpu::Groups<scalar_t> groups(h.image_group, h.caption_group);
  const cpu::HardestArgs args{image.data_ptr(), caption.data_ptr(), groups.images(), groups.captions(), h.size, order};
  const cpu::Parts rows(h.images, cpu::kScoreRows), columns(h.captions, cpu::kScoreColumns);
  Found<scalar_t> of_image(columns.count, h.images), of_caption(rows.count, h.captions);
  const Dtype dtype = cpu::dtype_of(h.caption_score);
  const auto kernel = cpu::kernels().hardest_negatives;
  cpu::over_parts<scalar_t>(rows, columns, h.size, [&](int64_t row, int64_t column, void* panel) {
    kernel(dtype, args,
           {rows.begin(row), rows.begin(row + 1), columns.begin(column), columns.begin(column + 1),
            of_image.score(column), of_image.index(column), of_caption.score(row), of_caption.index(row), panel});
  });
  of_image.write(order, static_cast<scalar_t*>(h.caption_score.data_ptr()),
                 static_cast<int64_t*>(h.caption_index.data_ptr()));
  of_caption.write(order, static_cast<scalar_t*>(h.image_score.data_ptr()),
                   static_cast<int64_t*>(h.image_index.data_ptr()));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> hardest_negatives_cpu(const Tensor& image, const Tensor& caption,
                                                                 const Tensor& image_group, const Tensor& caption_group,
                                                                 bool order) {
  const HardestNegatives h = prepare_hardest_negatives(image, caption, image_group, caption_group);
  h.caption_score.scalar_type() == ScalarType::Double ? find_hardest<double>(h, order) : find_hardest<float>(h, order);
  return {h.caption_index, h.caption_score, h.image_index, h.image_score};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) { m.impl("hardest_negatives", TORCH_BOX(&hrrl::hardest_negatives_cpu)); }
