// count_scores: how many scores of each row, and of each column, are above one bound, and how many reach another.
//
// A vector of columns keeps its bounds and counts while it meets a few rows: the scores are read once.
#include "cpu/kernels/score_tile.h"

namespace hrrl::cpu::HRRL_ISA {

constexpr int kRowsAtOnce = 4;

template <class scalar_t, int kRows>
static void count_rows(const CountArgs& a, const CountRange& range, int64_t row) {
  using vector = vector_of<scalar_t>;
  using mask = typename Lanes<scalar_t>::mask;
  using id = id_of<scalar_t>;
  constexpr int kLanes = Lanes<scalar_t>::kCount;
  const scalar_t *score[kRows], *bounds[2];
  id* counts[2];
  scalar_t row_bounds[2][kRows];
  int64_t of_row[2][kRows] = {};
  mask lanes[2][kRows] = {};
  for (int b = 0; b < 2; ++b) {
    bounds[b] = static_cast<const scalar_t*>(a.caption_bounds[b]);
    counts[b] = static_cast<id*>(range.caption_counts) + b * a.captions;
    for (int r = 0; r < kRows; ++r) row_bounds[b][r] = static_cast<const scalar_t*>(a.image_bounds[b])[row + r];
  }
  for (int r = 0; r < kRows; ++r) score[r] = static_cast<const scalar_t*>(a.score) + (row + r) * a.captions;
  int64_t j = 0;
  for (; j + kLanes <= a.captions; j += kLanes) {
    const vector above = load(bounds[0] + j), reached = load(bounds[1] + j);
    mask of_column[2] = {};
    for (int r = 0; r < kRows; ++r) {
      const vector s = load(score[r] + j);
      lanes[0][r] += s > row_bounds[0][r];  // of a vector: -1 where it holds
      lanes[1][r] += s >= row_bounds[1][r];
      of_column[0] += s > above;
      of_column[1] += s >= reached;
    }
    for (int b = 0; b < 2; ++b) {
      mask count;
      __builtin_memcpy(&count, counts[b] + j, sizeof(count));
      count -= of_column[b];
      __builtin_memcpy(counts[b] + j, &count, sizeof(count));
    }
  }
  for (; j < a.captions; ++j)
    for (int r = 0; r < kRows; ++r) {
      const scalar_t s = score[r][j];
      of_row[0][r] += s > row_bounds[0][r];
      of_row[1][r] += s >= row_bounds[1][r];
      counts[0][j] += s > bounds[0][j];
      counts[1][j] += s >= bounds[1][j];
    }
  for (int b = 0; b < 2; ++b)
    for (int r = 0; r < kRows; ++r) {
      for (int lane = 0; lane < kLanes; ++lane) of_row[b][r] -= lanes[b][r][lane];
      a.image_counts[b][row + r] += of_row[b][r];
    }
}

template <class scalar_t>
static void count(const CountArgs& a, const CountRange& range) {
  int64_t row = range.begin;
  for (; row + kRowsAtOnce <= range.end; row += kRowsAtOnce) count_rows<scalar_t, kRowsAtOnce>(a, range, row);
  for (; row < range.end; ++row) count_rows<scalar_t, 1>(a, range, row);
}

void count_scores(Dtype dtype, const CountArgs& a, const CountRange& range) {
  dtype == Dtype::kDouble ? count<double>(a, range) : count<float>(a, range);
}

}  // namespace hrrl::cpu::HRRL_ISA
