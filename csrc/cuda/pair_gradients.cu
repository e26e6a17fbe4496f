// pair_gradients: a block for every row, or for some, of either gradient, which goes through the pairs and adds those
// that name one, in their order. No two threads write to one place, and nothing is sorted. For "order" a first launch
// has the distances.
#include <algorithm>
#include <cmath>

#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

constexpr int kPairBlock = 128, kPairWarps = kPairBlock / kWarpSize;
constexpr int kPairsAtOnce = 512;
constexpr int64_t kPairBlocks = 1024;

struct BitOr {
  __device__ unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};

template <class acc_t>
__device__ acc_t beyond(acc_t g, acc_t f) {
  return g - f <= 0 ? 0 : g - f;  // a NaN stays one
}

// A warp per pair: its weight over its distance; 0 where that is 0. Without the rows it is the weight.
template <class scalar_t>
__global__ void __launch_bounds__(kPairBlock) pair_scale_kernel(const PairParams a) {
  using acc_t = acc_type<scalar_t>;
  using Team = LaneTeam<kWarpSize>;
  const int64_t n = Team::index();
  if (n >= a.pairs) return;
  const double weight = load(a.weight, n);
  const int64_t row = a.row[n], column = a.column[n];
  const bool there = row >= 0 && row < a.images && column >= 0 && column < a.captions;
  acc_t square = 0;
  if (there && weight != 0) {
    const auto *f = static_cast<const scalar_t*>(a.image) + row * a.size,
               *g = static_cast<const scalar_t*>(a.caption) + column * a.size;
    for (int64_t k = Team::rank(); k < a.size; k += kWarpSize) {
      const acc_t r = beyond(to_acc(g[k]), to_acc(f[k]));
      square += r * r;
    }
  }
  square = Team::reduce(square, Sum{});
  if (Team::rank() == 0) a.scale[n] = !there ? weight : square == 0 ? 0 : weight / sqrt(static_cast<double>(square));
}

template <class scalar_t, bool kOrder>
__global__ void __launch_bounds__(kPairBlock) pair_kernel(const PairParams a, int64_t rows_of_block) {
  using acc_t = acc_type<scalar_t>;
  __shared__ unsigned named[kPairsAtOnce / kWarpSize];
  const int64_t blocks_of_images = (a.images + rows_of_block - 1) / rows_of_block;
  const bool of_image = blockIdx.x < blocks_of_images;
  const int64_t count = of_image ? a.images : a.captions, others = of_image ? a.captions : a.images;
  const int64_t begin = (of_image ? blockIdx.x : blockIdx.x - blocks_of_images) * rows_of_block;
  const int64_t end = begin + rows_of_block < count ? begin + rows_of_block : count;
  const int64_t *index = of_image ? a.row : a.column, *other_index = of_image ? a.column : a.row;
  const auto *rows = static_cast<const scalar_t*>(of_image ? a.image : a.caption),
             *other_rows = static_cast<const scalar_t*>(of_image ? a.caption : a.image);
  auto* grad = static_cast<acc_t*>((of_image ? a.grad_image : a.grad_caption).data);
  const auto scale_of = [&](int64_t n) { return kOrder ? a.scale[n] : load(a.weight, n); };
  for (int64_t k = begin * a.size + threadIdx.x; k < end * a.size; k += kPairBlock) grad[k] = 0;
  for (int64_t first = 0; first < a.pairs; first += kPairsAtOnce) {
    __syncthreads();  // everybody has read what is there
#pragma unroll
    for (int part = 0; part < kPairsAtOnce; part += kPairBlock) {
      const int place = part + static_cast<int>(threadIdx.x), lane = place % kWarpSize;
      const int64_t n = first + place;
      const bool names = n < a.pairs && index[n] >= begin && index[n] < end;
      const unsigned warp = LaneTeam<kWarpSize>::reduce(names ? 1u << lane : 0u, BitOr{});
      if (lane == 0) named[place / kWarpSize] = warp;
    }
    __syncthreads();  // all of it is there
    for (int word = 0; word < kPairsAtOnce / kWarpSize; ++word)
      for (int bit = 0; bit < kWarpSize && named[word] != 0; ++bit) {
        if ((named[word] >> bit & 1) == 0) continue;
        const int64_t n = first + word * kWarpSize + bit, own = index[n] * a.size, other = other_index[n];
        if (other < 0 || scale_of(n) == 0) continue;
        const auto scale = static_cast<acc_t>(other < others ? scale_of(n) : NAN);
        const scalar_t* from = other < others ? other_rows + other * a.size : rows + own;
        for (int64_t k = threadIdx.x; k < a.size; k += kPairBlock) {
          acc_t value = to_acc(from[k]);
          if constexpr (kOrder)
            value = of_image ? beyond(value, to_acc(rows[own + k])) : -beyond(to_acc(rows[own + k]), value);
          grad[own + k] += scale * value;
        }
      }
  }
}

void launch_pair_gradients(Dtype dtype, const PairParams& p, CUstream_st* stream) {
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    // Every block goes through all pairs: no more of them than keep a device busy.
    const int64_t rows = std::max<int64_t>(1, (p.images + p.captions) / kPairBlocks);
    const LaunchShape shape{ceil_div(p.images, rows) + ceil_div(p.captions, rows), kPairBlock};
    if (!p.order) return launch_kernel<pair_kernel<scalar_t, false>>(shape, stream, p, rows);
    if (p.pairs > 0) launch_kernel<pair_scale_kernel<scalar_t>>({ceil_div(p.pairs, kPairWarps), kPairBlock}, stream, p);
    launch_kernel<pair_kernel<scalar_t, true>>(shape, stream, p, rows);
  });
}

}  // namespace hrrl::cuda
