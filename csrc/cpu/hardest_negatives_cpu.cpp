#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
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

// The hinges of pairs, and the pairs of whose scores these are made. A negative that is none has no weight.
template <class scalar_t>
void hinges_of(const HardestNegatives& h, scalar_t margin, const scalar_t* positive, int64_t pairs, scalar_t* hinge,
               int64_t* row, int64_t* column, scalar_t* weight) {
  const auto *of_image = static_cast<const scalar_t*>(h.caption_score.data_ptr()),
             *of_caption = static_cast<const scalar_t*>(h.image_score.data_ptr());
  const auto *captions = static_cast<const int64_t*>(h.caption_index.data_ptr()),
             *images = static_cast<const int64_t*>(h.image_index.data_ptr());
  for (int64_t n = 0; n < pairs; ++n) {
    const int64_t i = row[n], c = column[n];
    row[pairs + n] = i;
    column[pairs + n] = captions[i];
    row[2 * pairs + n] = images[c];
    column[2 * pairs + n] = c;
    scalar_t active = 0;
    for (int64_t side = 0; side < 2; ++side) {
      const scalar_t above = (margin - positive[n]) + (side == 0 ? of_image[i] : of_caption[c]);
      const int64_t at = side * pairs + n;
      hinge[at] = above <= 0 ? 0 : above;  // NaN stays
      weight[pairs + at] = above > 0 ? 1 : 0;
      active += weight[pairs + at];
    }
    weight[n] = -active;
  }
}

// Places of a pair's rows: those given, or row n and row n. Before anything is read by them.
void write_places(const char* name, const std::optional<Tensor>& given, int64_t count, int64_t pairs, int64_t* place) {
  if (!given) {
    std::iota(place, place + pairs, int64_t{0});
    return;
  }
  const Tensor places = as_contiguous(*given);
  const auto* at = static_cast<const int64_t*>(places.data_ptr());
  for (int64_t n = 0; n < pairs; ++n) {
    if (at[n] < 0 || at[n] >= count)
      fail<std::out_of_range>("_max_hinge: ", name, " must lie in [0, ", count, "), got ", at[n], " at ", n);
    place[n] = at[n];
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> hardest_negatives_cpu(const Tensor& image, const Tensor& caption,
                                                                 const Tensor& image_group, const Tensor& caption_group,
                                                                 bool order) {
  const HardestNegatives h =
      prepare_hardest_negatives("hardest_negatives: ", image, caption, image_group, caption_group);
  h.caption_score.scalar_type() == ScalarType::Double ? find_hardest<double>(h, order) : find_hardest<float>(h, order);
  return {h.caption_index, h.caption_score, h.image_index, h.image_score};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> max_hinge_cpu(const Tensor& image, const Tensor& caption,
                                                         const std::optional<Tensor>& row,
                                                         const std::optional<Tensor>& column, const Tensor& image_group,
                                                         const Tensor& caption_group, double margin, bool order) {
  constexpr const char* op = "_max_hinge: ";
  const HardestNegatives h = prepare_hardest_negatives(op, image, caption, image_group, caption_group);
  const ScalarType type = h.caption_score.scalar_type();
  HRRL_CHECK(image.scalar_type() == type, op, "image must be float32 or float64");
  HRRL_CHECK(row.has_value() == column.has_value(), op, "row and column go together");
  HRRL_CHECK(row || h.images == h.captions, op, "without row and column there must be as many captions as images");
  const int64_t pairs = row ? row->numel() : h.images;
  for (const auto& places : {row, column})
    HRRL_CHECK(!places || (places->dim() == 1 && places->size(0) == pairs && places->scalar_type() == ScalarType::Long),
               op, "row and column must be int64 of one shape [P]");
  const Tensor hinge = new_empty(h.image, {2, pairs}, type), weight = new_empty(h.image, {3 * pairs}, type);
  const Tensor rows = new_empty(h.image, {3 * pairs}, ScalarType::Long),
               columns = new_empty(h.image, {3 * pairs}, ScalarType::Long);
  auto *i = static_cast<int64_t*>(rows.data_ptr()), *c = static_cast<int64_t*>(columns.data_ptr());
  write_places("row", row, h.images, pairs, i);
  write_places("column", column, h.captions, pairs, c);
  const auto run = [&](auto zero) {
    using scalar_t = decltype(zero);
    find_hardest<scalar_t>(h, order);
    std::vector<scalar_t> positive(static_cast<size_t>(pairs));
    cpu::score_pairs(h.image, h.caption, i, c, pairs, order, positive.data());
    hinges_of(h, static_cast<scalar_t>(margin), positive.data(), pairs, static_cast<scalar_t*>(hinge.data_ptr()), i, c,
              static_cast<scalar_t*>(weight.data_ptr()));
  };
  type == ScalarType::Double ? run(double{}) : run(float{});
  return {hinge, rows, columns, weight};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("hardest_negatives", TORCH_BOX(&hrrl::hardest_negatives_cpu));
  m.impl("_max_hinge", TORCH_BOX(&hrrl::max_hinge_cpu));
}
