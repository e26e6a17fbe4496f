// A tile of the scores of images and captions, for hardest_negatives and hinge_coefficients.
//
// A block has 64 x 64 of them, 16 entries of the embeddings at a time through shared memory, while the next 16 are on
// their way; a thread has 8 rows and 4 columns of it in registers, side by side, so that three loads of 16 bytes serve
// 32 products. Those are of float32 (of float64 for float64), never of TF32: what is compared decides.
#pragma once

#include "cuda/kernel_launch.cuh"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

constexpr int kScoreTile = 64, kScoreDepth = 16;
constexpr int kScoreRows = 8, kScoreColumns = 4;                                                // of a thread
constexpr int kScoreDown = kScoreTile / kScoreRows, kScoreAcross = kScoreTile / kScoreColumns;  // threads of a tile
constexpr int kScoreBlock = kScoreDown * kScoreAcross;

// The rows of a tile, entry by entry. Of neighbouring entries a row lies in other banks.
template <class acc_t>
struct alignas(kPackBytes) ScoreSide {
  acc_t at[kScoreDepth][kScoreTile + kPackSize<acc_t>];

  template <int kCount>
  __device__ void read(int depth, int first, acc_t (&to)[kCount]) const {
    read_packs(&at[depth][first], to);
  }
};

template <class acc_t>
struct ScoreShared {
  ScoreSide<acc_t> image, caption;
};

// A thread's share of the entries of a side that come next: one of each of 8 rows. 0 where there are none.
template <class scalar_t, class acc_t>
class NextEntries {
 public:
  __device__ NextEntries(const scalar_t* rows, int64_t first, int64_t count, int64_t size)
      : step_(kRowsAtOnce * size), left_(size - depth()) {
    first += row();
    rows_ = first < count ? (count - first + kRowsAtOnce - 1) / kRowsAtOnce : 0;
    from_ = rows_ > 0 && left_ > 0 ? rows + first * size + depth() : rows;
  }
  __device__ void load() {
#pragma unroll
    for (int n = 0; n < kRows; ++n) held_[n] = n < rows_ && left_ > 0 ? to_acc(from_[n * step_]) : acc_t{};
    from_ += kScoreDepth;
    left_ -= kScoreDepth;
  }
  __device__ void write(ScoreSide<acc_t>& to) const {
#pragma unroll
    for (int n = 0; n < kRows; ++n) to.at[depth()][row() + n * kRowsAtOnce] = held_[n];
  }

 private:
  static constexpr int kRowsAtOnce = kScoreBlock / kScoreDepth, kRows = kScoreTile / kRowsAtOnce;
  __device__ static int depth() { return static_cast<int>(threadIdx.x) % kScoreDepth; }
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kScoreDepth; }
  const scalar_t* from_;
  int64_t step_, left_, rows_;
  acc_t held_[kRows];
};

// The first of the rows and columns of the tile that the thread has the scores of
__device__ inline int score_row() { return static_cast<int>(threadIdx.x) / kScoreAcross * kScoreRows; }
__device__ inline int score_column() { return static_cast<int>(threadIdx.x) % kScoreAcross * kScoreColumns; }

// total[r][c] = the score of image i + score_row() + r and caption j + score_column() + c; with kOrder minus the square
// of the distance. All threads of the block call it.
template <bool kOrder, class scalar_t, class acc_t>
__device__ void score_tile(ScoreShared<acc_t>& shared, const scalar_t* image, const scalar_t* caption, int64_t i,
                           int64_t images, int64_t j, int64_t captions, int64_t size,
                           acc_t (&total)[kScoreRows][kScoreColumns]) {
  for (auto& of_row : total)
    for (acc_t& score : of_row) score = 0;
  if (size == 0) return;  // and there is no memory
  NextEntries<scalar_t, acc_t> next_image(image, i, images, size), next_caption(caption, j, captions, size);
  next_image.load();
  next_caption.load();
  for (int64_t k = 0; k < size; k += kScoreDepth) {
    next_image.write(shared.image);
    next_caption.write(shared.caption);
    __syncthreads();  // all of them are there
    next_image.load();
    next_caption.load();
#pragma unroll
    for (int depth = 0; depth < kScoreDepth; ++depth) {
      acc_t f[kScoreRows], g[kScoreColumns];
      shared.image.read(depth, score_row(), f);
      shared.caption.read(depth, score_column(), g);
#pragma unroll
      for (int r = 0; r < kScoreRows; ++r)
#pragma unroll
        for (int c = 0; c < kScoreColumns; ++c) {
          if constexpr (kOrder) {
            const acc_t beyond = g[c] - f[r];
            if (!(beyond <= 0)) total[r][c] -= beyond * beyond;  // also a NaN
          } else {
            total[r][c] += f[r] * g[c];
          }
        }
    }
    __syncthreads();  // they are free again
  }
}

}  // namespace hrrl::cuda
