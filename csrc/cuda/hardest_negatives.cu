// hardest_negatives: a rectangle of the scores of images and captions, and the highest of its rows and columns.
//
// - A block takes tiles of scores (score_tile.cuh) and keeps none but the highest.
// - The grid has up to 32 ranges of rows by 32 of columns, so that what a second launch merges is 32 numbers for each
//   row and column, whatever there are. The highest of the highest, and the lowest of equal ones, depend on no order.
#include <cmath>

#include "cuda/score_tile.cuh"

namespace hrrl::cuda {

constexpr int64_t kHardestRanges = 32;
constexpr int kMergeBlock = 256;

// The highest score and whose it is: the lowest of equal ones, and a NaN for good. -Inf is nobody's.
template <class acc_t, class index_t>
struct Candidate {
  acc_t score;
  index_t index;
  __device__ void offer(acc_t value, index_t whose) {
    const bool first = value == score && value > static_cast<acc_t>(-HUGE_VAL) && whose < index;
    if (!(value > score || first || value != value)) return;  // nothing is above a NaN
    score = value;
    index = whose;
  }
};

template <class acc_t, class index_t>
__device__ Candidate<acc_t, index_t> nobody() {
  return {static_cast<acc_t>(-HUGE_VAL), -1};
}

static int64_t ranges_of(int64_t count) {
  const int64_t tiles = ceil_div(count, kScoreTile);
  return tiles < kHardestRanges ? tiles : kHardestRanges;
}

// The first tile of a range
__device__ inline int64_t first_tile(int64_t count, int64_t range, int64_t ranges) {
  return (count + kScoreTile - 1) / kScoreTile * range / ranges;
}

// Of every thread along the other side of the tile, by places in it; a row more, so that threads write to other banks.
template <class acc_t>
using TileCandidates = Candidate<acc_t, int>[kScoreAcross][kScoreTile + 1];

template <class acc_t>
struct HardestShared {
  ScoreShared<acc_t> scores;
  TileCandidates<acc_t> candidates;
};

// The candidates of all threads for the tile's rows or columns, merged into those of the range in global memory.
template <class acc_t>
__device__ void merge_tile(const TileCandidates<acc_t>& candidates, double* score, int64_t* index, int64_t first,
                           int64_t count, int64_t others, int sides) {
  __syncthreads();
  const int64_t at = first + threadIdx.x;
  if (threadIdx.x < kScoreTile && at < count) {
    auto of_tile = nobody<acc_t, int>();
    for (int side = 0; side < sides; ++side)
      of_tile.offer(candidates[side][threadIdx.x].score, candidates[side][threadIdx.x].index);
    Candidate<double, int64_t> best{score[at], index[at]};
    best.offer(of_tile.score, others + of_tile.index);
    score[at] = best.score;
    index[at] = best.index;
  }
  __syncthreads();  // the candidates are free again
}

template <class scalar_t, bool kOrder>
__global__ void __launch_bounds__(kScoreBlock)
    hardest_kernel(const HardestParams a, int64_t row_ranges, int64_t column_ranges) {
  using acc_t = acc_type<scalar_t>;
  __shared__ HardestShared<acc_t> shared;
  const auto *image = static_cast<const scalar_t*>(a.image), *caption = static_cast<const scalar_t*>(a.caption);
  const int64_t row_range = blockIdx.x / column_ranges, column_range = blockIdx.x % column_ranges;
  const int64_t i_begin = first_tile(a.images, row_range, row_ranges),
                i_end = first_tile(a.images, row_range + 1, row_ranges),
                j_begin = first_tile(a.captions, column_range, column_ranges),
                j_end = first_tile(a.captions, column_range + 1, column_ranges);
  double *of_image = a.scores + column_range * a.images,
         *of_caption = a.scores + column_ranges * a.images + row_range * a.captions;
  int64_t *whose_image = a.indices + column_range * a.images,
          *whose_caption = a.indices + column_ranges * a.images + row_range * a.captions;

  // Nobody else writes to these, so they need no launch of their own to begin with.
  const auto clear = [&](double* score, int64_t* index, int64_t begin, int64_t end, int64_t count) {
    for (int64_t at = begin * kScoreTile + threadIdx.x; at < end * kScoreTile && at < count; at += kScoreBlock) {
      score[at] = -HUGE_VAL;
      index[at] = -1;
    }
  };
  clear(of_image, whose_image, i_begin, i_end, a.images);
  clear(of_caption, whose_caption, j_begin, j_end, a.captions);
  __syncthreads();

  const int row = score_row(), column = score_column();
  for (int64_t i_tile = i_begin; i_tile < i_end; ++i_tile)
    for (int64_t j_tile = j_begin; j_tile < j_end; ++j_tile) {
      const int64_t i = i_tile * kScoreTile, j = j_tile * kScoreTile;
      acc_t total[kScoreRows][kScoreColumns];
      score_tile<kOrder>(shared.scores, image, caption, i, a.images, j, a.captions, a.size, total);
    // What is no pair, or one of the same group, is nobody's.
#pragma unroll
      for (int r = 0; r < kScoreRows; ++r)
#pragma unroll
        for (int c = 0; c < kScoreColumns; ++c) {
          const int64_t at_i = i + row + r, at_j = j + column + c;
          if (at_i >= a.images || at_j >= a.captions || a.image_group[at_i] == a.caption_group[at_j])
            total[r][c] = static_cast<acc_t>(-HUGE_VAL);
        }
#pragma unroll
      for (int r = 0; r < kScoreRows; ++r) {
        auto best = nobody<acc_t, int>();
#pragma unroll
        for (int c = 0; c < kScoreColumns; ++c) best.offer(total[r][c], column + c);
        shared.candidates[column / kScoreColumns][row + r] = best;
      }
      merge_tile<acc_t>(shared.candidates, of_image, whose_image, i, a.images, j, kScoreAcross);
#pragma unroll
      for (int c = 0; c < kScoreColumns; ++c) {
        auto best = nobody<acc_t, int>();
#pragma unroll
        for (int r = 0; r < kScoreRows; ++r) best.offer(total[r][c], row + r);
        shared.candidates[row / kScoreRows][column + c] = best;
      }
      merge_tile<acc_t>(shared.candidates, of_caption, whose_caption, j, a.captions, i, kScoreDown);
    }
}

// A thread per row and per column.
__global__ void __launch_bounds__(kMergeBlock)
    hardest_merge_kernel(const HardestParams a, int64_t row_ranges, int64_t column_ranges) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kMergeBlock + threadIdx.x;
  if (at >= a.images + a.captions) return;
  const bool of_image = at < a.images;
  const int64_t ranges = of_image ? column_ranges : row_ranges, count = of_image ? a.images : a.captions;
  const int64_t place = of_image ? at : at - a.images, first = of_image ? place : column_ranges * a.images + place;
  auto best = nobody<double, int64_t>();
  for (int64_t range = 0; range < ranges; ++range)
    best.offer(a.scores[first + range * count], a.indices[first + range * count]);
  store(of_image ? a.caption_score : a.image_score, place, a.order ? -sqrt(-best.score) : best.score);
  (of_image ? a.caption_index : a.image_index)[place] = best.score != best.score ? -1 : best.index;
}

int64_t hardest_workspace(int64_t images, int64_t captions) {
  return ranges_of(captions) * images + ranges_of(images) * captions;
}

template <class scalar_t, bool kOrder>
static void launch_scores(const HardestParams& p, int64_t rows, int64_t columns, CUstream_st* stream) {
  if (rows * columns > 0)
    launch_kernel<hardest_kernel<scalar_t, kOrder>>({rows * columns, kScoreBlock}, stream, p, rows, columns);
}

void launch_hardest_negatives(Dtype dtype, const HardestParams& p, CUstream_st* stream) {
  const int64_t rows = ranges_of(p.images), columns = ranges_of(p.captions);
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    p.order ? launch_scores<scalar_t, true>(p, rows, columns, stream)
            : launch_scores<scalar_t, false>(p, rows, columns, stream);
  });
  launch_kernel<hardest_merge_kernel>({ceil_div(p.images + p.captions, kMergeBlock), kMergeBlock}, stream, p, rows,
                                      columns);
}

}  // namespace hrrl::cuda
