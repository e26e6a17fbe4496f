// hinge_coefficients: a block for every tile of scores (score_tile.cuh), which leaves the derivative of its hinges
// behind and sums of its rows, of its columns and of all; a second launch adds those up in the order of the tiles.
#include <cmath>

#include "cuda/blocks.cuh"
#include "cuda/score_tile.cuh"

namespace hrrl::cuda {

constexpr int kAddBlock = 256;

struct HingeTiles {
  int64_t rows, columns;
  double *of_image, *of_caption, *loss;  // [columns, I], [rows, C], [rows * columns]
  HingeTiles(const HingeParams& p)
      : rows(ceil_div(p.images, kScoreTile)),
        columns(ceil_div(p.captions, kScoreTile)),
        of_image(p.sums),
        of_caption(of_image + columns * p.images),
        loss(of_caption + rows * p.captions) {}
};

template <class acc_t>
__device__ acc_t above_zero(acc_t v) {
  return v <= 0 ? 0 : v;  // a NaN stays one
}

template <class acc_t>
struct HingeShared {
  ScoreShared<acc_t> scores;
  double of_image[kScoreAcross][kScoreTile], of_caption[kScoreDown][kScoreTile];
};

// Of an image or a caption
template <class acc_t>
struct HingeRow {
  bool there;
  int64_t group;
  acc_t below;
  double weight;
};

template <class acc_t>
__device__ HingeRow<acc_t> hinge_row(const int64_t* groups, Reals below, Reals weight, int64_t at, int64_t count) {
  if (at >= count) return {};
  return {true, groups[at], static_cast<acc_t>(load(below, at)), load(weight, at)};
}

template <class scalar_t>
__global__ void __launch_bounds__(kScoreBlock) hinge_kernel(const HingeParams a, const HingeTiles tiles) {
  using acc_t = acc_type<scalar_t>;
  __shared__ HingeShared<acc_t> shared;
  const int64_t i = blockIdx.x / tiles.columns * kScoreTile, j = blockIdx.x % tiles.columns * kScoreTile;
  acc_t score[kScoreRows][kScoreColumns];
  score_tile<false>(shared.scores, static_cast<const scalar_t*>(a.image), static_cast<const scalar_t*>(a.caption), i,
                    a.images, j, a.captions, a.size, score);
  const int row = score_row(), column = score_column();
  HingeRow<acc_t> captions[kScoreColumns];
#pragma unroll
  for (int c = 0; c < kScoreColumns; ++c)
    captions[c] = hinge_row<acc_t>(a.caption_group, a.caption_below, a.caption_weight, j + column + c, a.captions);
  double loss = 0, of_caption[kScoreColumns] = {};
#pragma unroll
  for (int r = 0; r < kScoreRows; ++r) {
    const int64_t at_i = i + row + r;
    const auto image = hinge_row<acc_t>(a.image_group, a.image_below, a.image_weight, at_i, a.images);
    double of_image = 0;
#pragma unroll
    for (int c = 0; c < kScoreColumns; ++c) {
      const HingeRow<acc_t>& caption = captions[c];
      if (!image.there || !caption.there) continue;
      double coefficient = 0;
      if (image.group != caption.group) {
        const acc_t of_pair = score[r][c] + image.below, of_other = score[r][c] + caption.below;
        const double of_row = of_pair > 0 ? caption.weight : 0, of_column = of_other > 0 ? image.weight : 0;
        loss += above_zero(of_pair) * caption.weight + above_zero(of_other) * image.weight;
        of_image += of_row;
        of_caption[c] += of_column;
        coefficient = of_row + of_column;
      }
      store(a.coefficient, at_i * a.captions + j + column + c, coefficient);
    }
    shared.of_image[column / kScoreColumns][row + r] = of_image;
  }
#pragma unroll
  for (int c = 0; c < kScoreColumns; ++c) shared.of_caption[row / kScoreRows][column + c] = of_caption[c];
  loss = BlockOf<kScoreBlock>::reduce(loss, Sum{});  // with barriers: the sums of all threads are there
  if (threadIdx.x == 0) tiles.loss[blockIdx.x] = loss;
  const bool of_images = threadIdx.x < kScoreTile;
  const int at = static_cast<int>(threadIdx.x) % kScoreTile;
  static_assert(kScoreBlock == 2 * kScoreTile, "a thread for every row and every column");
  if (of_images ? i + at >= a.images : j + at >= a.captions) return;
  double total = 0;
  for (int side = 0; side < (of_images ? kScoreAcross : kScoreDown); ++side)
    total += of_images ? shared.of_image[side][at] : shared.of_caption[side][at];
  if (of_images)
    tiles.of_image[j / kScoreTile * a.images + i + at] = total;
  else
    tiles.of_caption[i / kScoreTile * a.captions + j + at] = total;
}

// A thread per row and per column; the first warp of the last block, beyond them, has the loss.
__global__ void __launch_bounds__(kAddBlock) hinge_sum_kernel(const HingeParams a, const HingeTiles tiles) {
  if (blockIdx.x + 1 == gridDim.x) {
    if (threadIdx.x >= kWarpSize) return;
    const double loss = combine(tiles.rows * tiles.columns, 0.0, Sum{}, [&](int64_t at) { return tiles.loss[at]; });
    if (threadIdx.x == 0) store(a.loss, 0, loss);
    return;
  }
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kAddBlock + threadIdx.x;
  if (at >= a.images + a.captions) return;
  const bool image = at < a.images;
  const int64_t place = image ? at : at - a.images;
  double total = 0;
  for (int64_t tile = 0; tile < (image ? tiles.columns : tiles.rows); ++tile)
    total += image ? tiles.of_image[tile * a.images + place] : tiles.of_caption[tile * a.captions + place];
  store(image ? a.of_image : a.of_caption, place, total);
}

int64_t hinge_workspace(int64_t images, int64_t captions) {
  const int64_t rows = ceil_div(images, kScoreTile), columns = ceil_div(captions, kScoreTile);
  return columns * images + rows * captions + rows * columns;
}

void launch_hinge_coefficients(Dtype dtype, const HingeParams& p, CUstream_st* stream) {
  const HingeTiles tiles(p);
  if (tiles.rows * tiles.columns > 0)
    dispatch(dtype, [&](auto type) {
      using scalar_t = typename decltype(type)::type;
      launch_kernel<hinge_kernel<scalar_t>>({tiles.rows * tiles.columns, kScoreBlock}, stream, p, tiles);
    });
  launch_kernel<hinge_sum_kernel>({ceil_div(p.images + p.captions, kAddBlock) + 1, kAddBlock}, stream, p, tiles);
}

}  // namespace hrrl::cuda
