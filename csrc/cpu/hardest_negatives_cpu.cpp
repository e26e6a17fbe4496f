#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/dtype.h"
#include "hardest_negatives.h"

namespace hrrl {

namespace {

// Parts of n rows or columns that threads work on, whole steps each. Never by the number of threads, though the highest
// of the highest does not depend on it: so many pieces for every row, and no more, are kept.
struct Parts {
  int64_t total, step, count;
  Parts(int64_t total, int64_t step)
      : total(total), step(step), count(std::min<int64_t>((total + step - 1) / step, 16)) {}
  int64_t begin(int64_t part) const {
    return std::min(total, ((total + step - 1) / step * part + count - 1) / count * step);
  }
};

// Groups by numbers of 32 bits: their own where those have room for all, else their places among all that there are.
std::vector<int32_t> short_groups(const int64_t* images, int64_t image_count, const int64_t* captions,
                                  int64_t caption_count) {
  std::vector<int64_t> all(images, images + image_count);
  all.insert(all.end(), captions, captions + caption_count);
  const auto fits = [](int64_t group) { return group == static_cast<int32_t>(group); };
  if (std::all_of(all.begin(), all.end(), fits)) return {all.begin(), all.end()};
  std::vector<int64_t> known = all;
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  std::vector<int32_t> places(all.size());
  std::transform(all.begin(), all.end(), places.begin(), [&](int64_t group) {
    return static_cast<int32_t>(std::lower_bound(known.begin(), known.end(), group) - known.begin());
  });
  return places;
}

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
  const auto *image_group = static_cast<const int64_t*>(h.image_group.data_ptr()),
             *caption_group = static_cast<const int64_t*>(h.caption_group.data_ptr());
  constexpr bool kShort = std::is_same_v<scalar_t, float>;
  std::vector<int32_t> groups;
  if (kShort) groups = short_groups(image_group, h.images, caption_group, h.captions);
  constexpr ScalarType type = kShort ? ScalarType::Float : ScalarType::Double;
  const Tensor image = as_type(h.image, type), caption = as_type(h.caption, type);
  const cpu::HardestArgs args{image.data_ptr(),
                              caption.data_ptr(),
                              kShort ? static_cast<const void*>(groups.data()) : image_group,
                              kShort ? static_cast<const void*>(groups.data() + h.images) : caption_group,
                              h.size,
                              order};
  const Parts rows(h.images, cpu::kHardestRows), columns(h.captions, cpu::kHardestColumns);
  Found<scalar_t> of_image(columns.count, h.images), of_caption(rows.count, h.captions);
  const auto kernel = cpu::kernels().hardest_negatives;
  const int64_t pairs = rows.count * columns.count == 0 ? 0 : h.images * h.captions / (rows.count * columns.count);
  cpu::parallel_rows(rows.count * columns.count, pairs * (h.size + 1), [&](int64_t begin, int64_t end) {
    constexpr int64_t kLine = 64 / sizeof(scalar_t);  // a panel begins where a cache line does
    std::vector<scalar_t> scratch(static_cast<size_t>(h.size * cpu::kHardestColumns + kLine));
    void* panel = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / columns.count, column = task % columns.count;
      kernel(kShort ? Dtype::kFloat : Dtype::kDouble, args,
             {rows.begin(row), rows.begin(row + 1), columns.begin(column), columns.begin(column + 1),
              of_image.score(column), of_image.index(column), of_caption.score(row), of_caption.index(row), panel});
    }
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
