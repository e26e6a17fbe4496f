// hardest_negatives: a rectangle of the scores of images and captions, and the highest of its rows and columns.
//
// - A tile of scores (score_tile.h) leaves none behind but the highest. What is compared is the product, or minus the
//   square of the distance, which has no root yet.
// - Of a tile, a row or column is looked into only where its maximum is above what was found before, which gets rare. A
//   tile with a NaN, or at an edge, is gone through score by score.
#include "cpu/kernels/score_tile.h"

namespace hrrl::cpu::HRRL_ISA {

// The highest score so far and whose it is; the first of equal ones, and a NaN for good.
template <class scalar_t, class index_t>
struct Hardest {
  scalar_t* value;
  index_t* index;
  HRRL_INLINE_MEMBER void offer(int64_t of, scalar_t score, index_t whose) const {
    if (score > value[of] || score != score) {  // nothing is above a NaN
      value[of] = score;
      index[of] = whose;
    }
  }
};

// Of captions those of one panel, whose images are counted from the first of the range: they fit into a lane.
template <class scalar_t>
using HardestImages = Hardest<scalar_t, id_of<scalar_t>>;
template <class scalar_t>
using HardestCaptions = Hardest<scalar_t, int64_t>;

template <class scalar_t>
HRRL_INLINE void take_all(const Tile<scalar_t>& tile, const HardestCaptions<scalar_t>& of_image,
                          const HardestImages<scalar_t>& of_caption, int64_t i, int64_t begin, int64_t j, int64_t rows,
                          int64_t columns) {
  const auto* scores = reinterpret_cast<const scalar_t*>(tile.scores);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const scalar_t score = scores[r * kPanel<scalar_t> + c];
      of_image.offer(i + r, score, j + c);
      of_caption.offer(c, score, static_cast<id_of<scalar_t>>(i + r - begin));
    }
}

// The first of a row's scores that is as high as `most`, which one of them is.
template <class scalar_t>
HRRL_INLINE int64_t place_of(scalar_t most, const vector_of<scalar_t> (&row)[kPanelVectors]) {
  using mask = typename Lanes<scalar_t>::mask;
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  mask place = mask{} + kPanel<scalar_t>;
  for (int v = kPanelVectors - 1; v >= 0; --v)
    place = row[v] == most - vector_of<scalar_t>{} ? lane_numbers<mask>() + v * kLanes : place;
  return across<kLanes>(place, Smaller{});
}

// The same for a whole tile without NaN. What was found before may be NaN, and is below nothing.
template <class scalar_t>
HRRL_INLINE void take_highest(const Tile<scalar_t>& tile, const HardestCaptions<scalar_t>& of_image,
                              const HardestImages<scalar_t>& of_caption, int64_t i, int64_t begin, int64_t j) {
  using vector = vector_of<scalar_t>;
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  for (int r = 0; r < kRows; ++r) {
    vector highest = tile.scores[r][0];
    for (int v = 1; v < kPanelVectors; ++v) highest = max(highest, tile.scores[r][v]);
    const scalar_t most = max(highest);
    if (!(most > of_image.value[i + r])) continue;
    of_image.value[i + r] = most;
    of_image.index[i + r] = j + place_of(most, tile.scores[r]);
  }
  for (int v = 0; v < kPanelVectors; ++v) {
    vector highest = tile.scores[0][v];
    for (int r = 1; r < kRows; ++r) highest = max(highest, tile.scores[r][v]);
    vector best = load(of_caption.value + v * kLanes);
    if (!any(highest > best)) continue;
    typename Lanes<scalar_t>::mask whose;
    __builtin_memcpy(&whose, of_caption.index + v * kLanes, sizeof(whose));
    for (int r = 0; r < kRows; ++r) {
      const auto above = tile.scores[r][v] > best;
      best = above ? tile.scores[r][v] : best;
      whose = above ? static_cast<id_of<scalar_t>>(i + r - begin) - typename Lanes<scalar_t>::mask{} : whose;
    }
    store(of_caption.value + v * kLanes, best);
    __builtin_memcpy(of_caption.index + v * kLanes, &whose, sizeof(whose));
  }
}

template <bool kOrder, class scalar_t>
static void hardest_of(const HardestArgs& a, const HardestRange& range) {
  using id = id_of<scalar_t>;
  const auto *image = static_cast<const scalar_t*>(a.image), *caption = static_cast<const scalar_t*>(a.caption);
  const auto *image_group = static_cast<const id*>(a.image_group),
             *caption_group = static_cast<const id*>(a.caption_group);
  auto* panel = static_cast<scalar_t*>(range.panel);
  const HardestCaptions<scalar_t> of_image{static_cast<scalar_t*>(range.caption_score), range.caption_index};
  for (int64_t j = range.caption_begin; j < range.caption_end; j += kPanel<scalar_t>) {
    const int64_t left = range.caption_end - j, columns = left < kPanel<scalar_t> ? left : kPanel<scalar_t>;
    pack(caption + j * a.size, columns, a.size, panel);
    id groups[kPanel<scalar_t>] = {}, whose[kPanel<scalar_t>];
    for (int64_t c = 0; c < columns; ++c) groups[c] = caption_group[j + c];
    for (id& image_of : whose) image_of = -1;
    const HardestImages<scalar_t> of_caption{static_cast<scalar_t*>(range.image_score) + j, whose};
    for (int64_t i = range.image_begin; i < range.image_end; i += kRows) {
      const int64_t below = range.image_end - i, rows = below < kRows ? below : kRows;
      const Rows<scalar_t> from(image, image_group, i, rows, a.size);
      Tile<scalar_t> tile;
      score<kOrder>(from.row, panel, a.size, tile);
      const bool nan = mask_groups(from.group, groups, tile);
      if (nan || rows < kRows || columns < kPanel<scalar_t>)
        take_all(tile, of_image, of_caption, i, range.image_begin, j, rows, columns);
      else
        take_highest(tile, of_image, of_caption, i, range.image_begin, j);
    }
    for (int64_t c = 0; c < columns; ++c) range.image_index[j + c] = whose[c] < 0 ? -1 : range.image_begin + whose[c];
  }
}

void hardest_negatives(Dtype dtype, const HardestArgs& a, const HardestRange& range) {
  if (dtype == Dtype::kDouble)
    a.order ? hardest_of<true, double>(a, range) : hardest_of<false, double>(a, range);
  else
    a.order ? hardest_of<true, float>(a, range) : hardest_of<false, float>(a, range);
}

}  // namespace hrrl::cpu::HRRL_ISA
