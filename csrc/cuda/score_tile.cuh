// A tile of the scores of images and captions, for hardest_negatives and hinge_coefficients.
//
// A block has 64 x 64 of them, 16 entries of the embeddings at a time through shared memory; a thread has 4 rows and 4
// columns of it in registers. Products are of float32 (of float64 for float64), never of TF32: what is compared
// decides.
#pragma once

#include "cuda/kernel_launch.cuh"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

constexpr int kScoreTile = 64, kScoreDepth = 16, kScoreThread = 4;
constexpr int kScoreSide = kScoreTile / kScoreThread;  // threads along a side of the tile
constexpr int kScoreBlock = kScoreSide * kScoreSide;

template <class acc_t>
struct ScoreShared {
  acc_t image[kScoreDepth][kScoreTile + 1], caption[kScoreDepth][kScoreTile + 1];
};

// Entries [k, k + kScoreDepth) of the rows of a tile; 0 where there are none.
template <class scalar_t, class acc_t>
__device__ void load_rows(acc_t (&to)[kScoreDepth][kScoreTile + 1], const scalar_t* rows, int64_t first, int64_t count,
                          int64_t k, int64_t size) {
  for (int at = static_cast<int>(threadIdx.x); at < kScoreTile * kScoreDepth; at += kScoreBlock) {
    const int row = at / kScoreDepth, depth = at % kScoreDepth;
    const bool there = first + row < count && k + depth < size;
    to[depth][row] = there ? to_acc(rows[(first + row) * size + k + depth]) : acc_t{};
  }
}

// total[r][c] = the score of image i + row + r kScoreSide and caption j + column + c kScoreSide, where row and column
// are the thread's; with kOrder minus the square of the distance. All threads of the block call it.
template <bool kOrder, class scalar_t, class acc_t>
__device__ void score_tile(ScoreShared<acc_t>& shared, const scalar_t* image, const scalar_t* caption, int64_t i,
                           int64_t images, int64_t j, int64_t captions, int64_t size,
                           acc_t (&total)[kScoreThread][kScoreThread]) {
  const int row = static_cast<int>(threadIdx.x) / kScoreSide, column = static_cast<int>(threadIdx.x) % kScoreSide;
  for (auto& of_row : total)
    for (acc_t& score : of_row) score = 0;
  for (int64_t k = 0; k < size; k += kScoreDepth) {
    load_rows(shared.image, image, i, images, k, size);
    load_rows(shared.caption, caption, j, captions, k, size);
    __syncthreads();
    for (int depth = 0; depth < kScoreDepth; ++depth) {
      acc_t f[kScoreThread], g[kScoreThread];
#pragma unroll
      for (int r = 0; r < kScoreThread; ++r) f[r] = shared.image[depth][row + r * kScoreSide];
#pragma unroll
      for (int c = 0; c < kScoreThread; ++c) g[c] = shared.caption[depth][column + c * kScoreSide];
#pragma unroll
      for (int r = 0; r < kScoreThread; ++r)
#pragma unroll
        for (int c = 0; c < kScoreThread; ++c) {
          if constexpr (kOrder) {
            const acc_t beyond = g[c] - f[r];
            if (!(beyond <= 0)) total[r][c] -= beyond * beyond;  // also a NaN
          } else {
            total[r][c] += f[r] * g[c];
          }
        }
    }
    __syncthreads();
  }
}

}  // namespace hrrl::cuda
