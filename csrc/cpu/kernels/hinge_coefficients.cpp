// hinge_coefficients: a rectangle of the scores of images and captions, and what their hinges come to.
//
// A tile of scores (score_tile.h) leaves behind the derivative of its hinges alone. Hinges are added up in vectors
// within a tile, which is 6 rows, and columns within a panel of a range of rows; from there on in double.
#include "cpu/kernels/score_tile.h"

namespace hrrl::cpu::HRRL_ISA {

// Of the images of a tile, or of the captions of a panel.
template <class scalar_t, int kCount>
struct Side {
  scalar_t below[kCount], weight[kCount];
  HRRL_INLINE_MEMBER Side(const void* all_below, const void* all_weight, int64_t first, int64_t count) {
    for (int64_t at = 0; at < kCount; ++at) {
      below[at] = at < count ? static_cast<const scalar_t*>(all_below)[first + at] : 0;
      weight[at] = at < count ? static_cast<const scalar_t*>(all_weight)[first + at] : 0;
    }
  }
};

// The hinges of a tile; in place of its scores their coefficients. Returns the loss.
template <class scalar_t>
HRRL_INLINE double take_hinges(Tile<scalar_t>& tile, const Side<scalar_t, kRows>& images,
                               const Side<scalar_t, kPanel<scalar_t>>& captions, double (&of_image)[kRows],
                               vector_of<scalar_t> (&of_caption)[kPanelVectors]) {
  using vector = vector_of<scalar_t>;
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  vector loss = {}, of_row[kRows] = {};
  for (int v = 0; v < kPanelVectors; ++v) {
    const vector below = load(captions.below + v * kLanes), weight = load(captions.weight + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const vector score = tile.scores[r][v], image_weight = images.weight[r] - vector{};
      const vector of_pair = score + images.below[r], of_other = score + below;
      loss += positive(of_pair) * weight + positive(of_other) * image_weight;
      const vector row = of_pair > 0 ? weight : vector{}, column = of_other > 0 ? image_weight : vector{};
      of_row[r] += row;
      of_caption[v] += column;
      tile.scores[r][v] = row + column;
    }
  }
  for (int r = 0; r < kRows; ++r) of_image[r] = sum(of_row[r]);
  return sum(loss);
}

template <class scalar_t>
static void hinges_of(const HingeArgs& a, const HingeRange& range) {
  using vector = vector_of<scalar_t>;
  using id = id_of<scalar_t>;
  constexpr int kLanes = Lanes<scalar_t>::kCount, kColumns = kPanel<scalar_t>;
  const auto *image = static_cast<const scalar_t*>(a.image), *caption = static_cast<const scalar_t*>(a.caption);
  const auto *image_group = static_cast<const id*>(a.image_group),
             *caption_group = static_cast<const id*>(a.caption_group);
  auto *panel = static_cast<scalar_t*>(range.panel), *coefficient = static_cast<scalar_t*>(a.coefficient);
  for (int64_t j = range.caption_begin; j < range.caption_end; j += kColumns) {
    const int64_t left = range.caption_end - j, columns = left < kColumns ? left : kColumns;
    pack(caption + j * a.size, columns, a.size, panel);
    const Side<scalar_t, kColumns> captions(a.caption_below, a.caption_weight, j, columns);
    id groups[kColumns] = {};
    for (int64_t c = 0; c < columns; ++c) groups[c] = caption_group[j + c];
    vector of_caption[kPanelVectors] = {};
    for (int64_t i = range.image_begin; i < range.image_end; i += kRows) {
      const int64_t below = range.image_end - i, rows = below < kRows ? below : kRows;
      const Rows<scalar_t> from(image, image_group, i, rows, a.size);
      Tile<scalar_t> tile;
      score<false>(from.row, panel, a.size, tile);
      mask_groups(from.group, groups, tile);
      auto* scores = reinterpret_cast<scalar_t*>(tile.scores);
      if (rows < kRows || columns < kColumns)  // what is not there has no hinge
        for (int64_t at = 0; at < kRows * kColumns; ++at)
          if (at / kColumns >= rows || at % kColumns >= columns) scores[at] = -static_cast<scalar_t>(__builtin_inf());
      double of_image[kRows];
      *range.loss += take_hinges(tile, Side<scalar_t, kRows>(a.image_below, a.image_weight, i, rows), captions,
                                 of_image, of_caption);
      for (int64_t r = 0; r < rows; ++r) {
        range.of_image[i + r] += of_image[r];
        __builtin_memcpy(coefficient + (i + r) * a.captions + j, scores + r * kColumns,
                         static_cast<size_t>(columns) * sizeof(scalar_t));
      }
    }
    for (int64_t c = 0; c < columns; ++c) range.of_caption[j + c] += of_caption[c / kLanes][c % kLanes];
  }
}

void hinge_coefficients(Dtype dtype, const HingeArgs& a, const HingeRange& range) {
  dtype == Dtype::kDouble ? hinges_of<double>(a, range) : hinges_of<float>(a, range);
}

}  // namespace hrrl::cpu::HRRL_ISA
