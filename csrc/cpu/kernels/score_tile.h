// The scores of images and captions, a tile at a time, for hardest_negatives and hinge_coefficients.
//
// Captions are packed in panels, transposed: lanes are captions, and an image's entry is the same in all of them. A
// tile of kRows images and a panel has its sums in registers from the first entry to the last. The order similarity
// differs by two instructions, and is as good as a product then: what it gives is minus the square of the distance.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

template <class scalar_t>
struct Lanes {
  using vector = vfloat;
  using mask = vint;
  using id = int32_t;
  static constexpr int kCount = kWidth;
};
template <>
struct Lanes<double> {
  using vector = vdouble;
  using mask = vlong;
  using id = int64_t;
  static constexpr int kCount = kDoubles;
};
template <class scalar_t>
using vector_of = typename Lanes<scalar_t>::vector;
template <class scalar_t>
using id_of = typename Lanes<scalar_t>::id;

#if defined(__AVX512F__)
constexpr int kPanelVectors = 4;  // with kRows: 24 sums, 4 vectors of captions, and what they are computed with
#else
constexpr int kPanelVectors = 2;  // 12, of 16 registers
#endif
constexpr int kRows = 6;
static_assert(kScoreRows % kRows == 0, "a range of rows is whole tiles");

template <class scalar_t>
constexpr int kPanel = kPanelVectors * Lanes<scalar_t>::kCount;
static_assert(kScoreColumns % kPanel<float> == 0 && kScoreColumns % kPanel<double> == 0, "whole panels");

// ---------------------------------------------------------------------------------------------------------------------
// Panels

template <int kPart, class vector, size_t... kLane>
HRRL_INLINE vector interleave(vector a, vector b, std::index_sequence<kLane...>) {
  constexpr size_t kLanes = sizeof...(kLane);
  return __builtin_shufflevector(a, b, (kLane % 2 * kLanes + kPart * kLanes / 2 + kLane / 2)...);
}

// A square of as many rows as lanes: every round deals out two halves of the rows one by one.
template <int kLanes, class vector>
HRRL_INLINE void transpose(vector* rows) {
  constexpr auto kSequence = std::make_index_sequence<kLanes>();
  for (int round = 1; round < kLanes; round *= 2) {
    vector dealt[kLanes];
    for (int r = 0; r < kLanes / 2; ++r) {
      dealt[2 * r] = interleave<0>(rows[r], rows[r + kLanes / 2], kSequence);
      dealt[2 * r + 1] = interleave<1>(rows[r], rows[r + kLanes / 2], kSequence);
    }
    for (int r = 0; r < kLanes; ++r) rows[r] = dealt[r];
  }
}

// panel[k][j] = rows[j][k], 0 where there is no row j
template <class scalar_t>
static void pack(const scalar_t* rows, int64_t count, int64_t size, scalar_t* panel) {
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  for (int64_t first = 0; first < kPanel<scalar_t>; first += kLanes) {
    const int64_t here = count - first;
    int64_t k = 0;
    for (; k + kLanes <= size; k += kLanes) {
      vector_of<scalar_t> square[kLanes];
      for (int r = 0; r < kLanes; ++r)
        square[r] = r < here ? load(rows + (first + r) * size + k) : vector_of<scalar_t>{};
      transpose<kLanes>(square);
      for (int r = 0; r < kLanes; ++r) store(panel + (k + r) * kPanel<scalar_t> + first, square[r]);
    }
    for (; k < size; ++k)
      for (int r = 0; r < kLanes; ++r)
        panel[k * kPanel<scalar_t> + first + r] = r < here ? rows[(first + r) * size + k] : 0;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tiles

// max(v, 0); NaN stays NaN, which the instruction takes from its second operand.
HRRL_INLINE vfloat positive(vfloat v) {
#if defined(__AVX512F__)
  return bit_cast<vfloat>(_mm512_max_ps(_mm512_setzero_ps(), bit_cast<__m512>(v)));
#elif defined(__AVX2__)
  return bit_cast<vfloat>(_mm256_max_ps(_mm256_setzero_ps(), bit_cast<__m256>(v)));
#else
  return v < 0.0f ? vfloat{} : v;
#endif
}
HRRL_INLINE vdouble positive(vdouble v) {
#if defined(__AVX512F__)
  return bit_cast<vdouble>(_mm512_max_pd(_mm512_setzero_pd(), bit_cast<__m512d>(v)));
#elif defined(__AVX2__)
  return bit_cast<vdouble>(_mm256_max_pd(_mm256_setzero_pd(), bit_cast<__m256d>(v)));
#else
  return v < 0.0 ? vdouble{} : v;
#endif
}

template <class scalar_t>
struct Tile {
  vector_of<scalar_t> scores[kRows][kPanelVectors];
};

template <bool kOrder, class scalar_t>
HRRL_INLINE void score(const scalar_t* const (&rows)[kRows], const scalar_t* panel, int64_t size,
                       Tile<scalar_t>& tile) {
  using vector = vector_of<scalar_t>;
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  vector total[kRows][kPanelVectors] = {};
  for (int64_t k = 0; k < size; ++k, panel += kPanel<scalar_t>) {
    vector captions[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) captions[v] = load(panel + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const vector image = rows[r][k] - vector{};
      for (int v = 0; v < kPanelVectors; ++v) {
        if constexpr (kOrder) {
          const vector beyond = positive(captions[v] - image);
          total[r][v] -= beyond * beyond;
        } else {
          total[r][v] += image * captions[v];
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kPanelVectors; ++v) tile.scores[r][v] = total[r][v];
}

// Pairs of one group get -Inf, which nobody takes. Returns whether a NaN is left.
template <class scalar_t>
HRRL_INLINE bool mask_groups(const id_of<scalar_t> (&image)[kRows], const id_of<scalar_t>* caption,
                             Tile<scalar_t>& tile) {
  using mask = typename Lanes<scalar_t>::mask;
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  const vector_of<scalar_t> none = vector_of<scalar_t>{} - static_cast<scalar_t>(__builtin_inf());
  mask nan = {};
  for (int v = 0; v < kPanelVectors; ++v) {
    mask group;
    __builtin_memcpy(&group, caption + v * kLanes, sizeof(group));
    for (int r = 0; r < kRows; ++r) {
      tile.scores[r][v] = group == image[r] ? none : tile.scores[r][v];
      nan |= tile.scores[r][v] != tile.scores[r][v];
    }
  }
  return any(nan);
}

// Up to kRows rows from i on, the last of them again where there are fewer.
template <class scalar_t>
struct Rows {
  const scalar_t* row[kRows];
  id_of<scalar_t> group[kRows];
  HRRL_INLINE_MEMBER Rows(const scalar_t* image, const id_of<scalar_t>* groups, int64_t i, int64_t rows, int64_t size) {
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t at = i + (r < rows ? r : rows - 1);
      row[r] = image + at * size;
      group[r] = groups[at];
    }
  }
};

}  // namespace hrrl::cpu::HRRL_ISA
