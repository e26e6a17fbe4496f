// How threads share the scores of images and captions: for hardest_negatives and hinge_coefficients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/dtype.h"

namespace hrrl::cpu {

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
inline std::vector<int32_t> short_groups(const int64_t* images, int64_t image_count, const int64_t* captions,
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

// The groups of images and captions as the kernels of scalar_t take them.
template <class scalar_t>
class Groups {
 public:
  Groups(const Tensor& images, const Tensor& captions)
      : images_(static_cast<const int64_t*>(images.data_ptr())),
        captions_(static_cast<const int64_t*>(captions.data_ptr())) {
    if (kShort) short_ = short_groups(images_, images.size(0), captions_, captions.size(0));
    short_captions_ = kShort ? short_.data() + images.size(0) : nullptr;
  }
  Groups(const Groups&) = delete;
  const void* images() const { return kShort ? static_cast<const void*>(short_.data()) : images_; }
  const void* captions() const { return kShort ? static_cast<const void*>(short_captions_) : captions_; }

 private:
  static constexpr bool kShort = std::is_same_v<scalar_t, float>;
  const int64_t *images_, *captions_;
  std::vector<int32_t> short_;
  const int32_t* short_captions_;
};

// f(row part, column part, scratch for a panel) for all of them, on several threads.
template <class scalar_t, class F>
void over_parts(const Parts& rows, const Parts& columns, int64_t size, F f) {
  const int64_t parts = rows.count * columns.count;
  const int64_t pairs = parts == 0 ? 0 : rows.total * columns.total / parts;
  parallel_rows(parts, pairs * (size + 1), [&](int64_t begin, int64_t end) {
    constexpr int64_t kLine = 64 / sizeof(scalar_t);  // a panel begins where a cache line does
    std::vector<scalar_t> scratch(static_cast<size_t>(size * kScoreColumns + kLine));
    void* panel = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    for (int64_t part = begin; part < end; ++part) f(part / columns.count, part % columns.count, panel);
  });
}

// of_pair_n = s(image_row_n, caption_column_n), of the type of both embeddings, which are contiguous.
inline void score_pairs(const Tensor& image, const Tensor& caption, const int64_t* row, const int64_t* column,
                        int64_t pairs, bool order, void* of_pair) {
  PairArgs args{};
  args.image = image.data_ptr();
  args.caption = caption.data_ptr();
  args.row = row;
  args.column = column;
  args.of_pair = of_pair;
  args.size = image.size(1);
  args.order = order;
  const Dtype dtype = dtype_of(image);
  const auto kernel = kernels().pair_scores;
  parallel_rows(pairs, args.size / 16, [&](int64_t begin, int64_t end) { kernel(dtype, args, begin, end); });
}

}  // namespace hrrl::cpu
