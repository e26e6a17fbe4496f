// out_i = x_i + tau g_i / ||g_i||: g and x are read once, out is written once, in one launch, where the device allows.
//
// The length of a row chooses who works on it (split_row):
// - up to 32 KB the threads of a warp or of a block, who keep x and g in registers: both are on their way at once
// - longer rows in slices, up to 8. A block keeps its slice of g in shared memory until the norm is known. The blocks
//   of a row are a cluster and read each other's sums; devices without clusters take two launches and read g twice
// - rows beyond the shared memory of 8 blocks in chunks, in two launches
//
// The sums of a row are formed slice by slice, and slices follow from its length alone: the cluster and the two
// launches give the same bits. A thread only ever visits its own entries, so g may wait without a barrier.
#include "cuda/blocks.cuh"
#include "cuda/kernel_launch.cuh"
#include "cuda/perturb_step.cuh"

namespace hrrl::cuda {

constexpr int kWarpsBlock = 256;  // threads of a block whose warps take a row each
constexpr int kRowBlock = 512;    // the most that take a row together, in registers
constexpr int kSliceBlock = 512;  // threads that take a slice
// Packs that a thread loads before it uses the first, of x and g together: 64 bytes, of single entries up to 16.
template <class Vec>
constexpr int kInFlight = sizeof(Vec) >= kPackBytes / 4 ? 64 / static_cast<int>(sizeof(Vec)) : 16;
// Such blocks on a multiprocessor at once. Three leave a thread 40 registers: enough for float alone.
template <class scalar_t>
constexpr int kSlicesAtOnce = std::is_same_v<scalar_t, float> ? 3 : 2;
// Bytes of a slice while a row has fewer than 8: three share the 228 KB of a Hopper multiprocessor, and a float32
// image of 3 x 224 x 224 is 8 slices.
constexpr int64_t kSliceBytes = 75264;
constexpr int64_t kMaxSliceBytes = 224 * 1024;  // of the 227 KB that a block can have
constexpr int64_t kChunkBytes = 65536;
constexpr size_t kSliceHeader = 32;  // the sum of a slice, before its entries in shared memory

// How a row is shared out; of its length and dtype alone.
struct RowSplit {
  int64_t slices, length;  // entries of a slice, the last of a row may be shorter; a multiple of every pack
  bool on_chip;            // the slices fit the shared memory of a cluster
};

template <class scalar_t>
RowSplit split_row(int64_t size) {
  constexpr int64_t kEntry = sizeof(scalar_t), kPack = kPackSize<scalar_t>;
  const int64_t bytes = size * kEntry;
  const bool on_chip = bytes <= kClusterBlocks * kMaxSliceBytes;
  int64_t slices = 1;
  if (!on_chip) slices = ceil_div(bytes, kChunkBytes);
  while (on_chip && slices < kClusterBlocks && bytes > slices * kSliceBytes) slices *= 2;
  return {slices, ceil_div(ceil_div(size, slices), kPack) * kPack, on_chip};
}

// ---------------------------------------------------------------------------------------------------------------------
// Over the packs of a thread

// For the packs i = rank, rank + stride, ... below end, kCount at a time: load(u, i) for all of them, then use(u, i).
template <int kCount, class Load, class Use>
__device__ void each_pack(int64_t rank, int64_t stride, int64_t end, Load load, Use use) {
  for (int64_t i = rank; i < end; i += kCount * stride) {
#pragma unroll
    for (int u = 0; u < kCount; ++u)
      if (i + u * stride < end) load(u, i + u * stride);
#pragma unroll
    for (int u = 0; u < kCount; ++u)
      if (i + u * stride < end) use(u, i + u * stride);
  }
}

template <class Total, class scalar_t, int kVec>
__device__ void add_squares(Total& total, const Pack<scalar_t, kVec>& g) {
#pragma unroll
  for (int e = 0; e < kVec; ++e) total.add(to_acc(g.value[e]));
}

template <class scalar_t, int kVec, class F>
__device__ void move(Pack<scalar_t, kVec>& x, const Pack<scalar_t, kVec>& g, F f) {
#pragma unroll
  for (int e = 0; e < kVec; ++e) assign(x.value[e], f(to_acc(x.value[e]), to_acc(g.value[e])));
}

// The packs of x that a thread moves first, which it asks for before it waits for the norm, and then the next ones.
template <class Vec>
constexpr int kAhead = kInFlight<Vec> / 2;
template <class Vec>
__device__ void load_packs(Vec (&to)[kAhead<Vec>], const Vec* from, int64_t begin, int64_t end) {
#pragma unroll
  for (int u = 0; u < kAhead<Vec>; ++u)
    if (begin + u * kSliceBlock < end) to[u] = from[begin + u * kSliceBlock];
}

// out = x + step over [0, end) packs, by the block. g may be in shared memory; x_in has the first packs of x.
template <class Vec, class AnyStep>
__device__ void take_step(const AnyStep& step, const Vec* x, Vec (&x_in)[kAhead<Vec>], const Vec* g, Vec* out,
                          int64_t end) {
  if (!step.moves) {  // to the bit, NaNs included
    for (int64_t i = threadIdx.x; i < end; i += kSliceBlock) out[i] = x[i];
    return;
  }
  step.visit([&](auto f) {
    for (int64_t i = threadIdx.x; i < end; i += kAhead<Vec> * kSliceBlock) {
      Vec g_in[kAhead<Vec>];
      load_packs(g_in, g, i, end);
#pragma unroll
      for (int u = 0; u < kAhead<Vec>; ++u)
        if (i + u * kSliceBlock < end) {
          move(x_in[u], g_in[u], f);
          out[i + u * kSliceBlock] = x_in[u];
        }
      load_packs(x_in, x, i + kAhead<Vec> * kSliceBlock, end);
    }
  });
}

__device__ inline double tau_of(const PerturbParams& p, int64_t row) {
  return p.tau_scale ? p.tau * p.tau_scale[row] : p.tau;
}

template <class scalar_t>
__device__ void store_norm(const PerturbParams& p, int64_t row, double norm) {
  using norm_t = typename StepOf<scalar_t>::norm_t;
  static_cast<norm_t*>(p.norm)[row] = static_cast<norm_t>(norm);
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels

// A team per row of at most kInFlight packs per thread.
template <class scalar_t, int kVec, class Team, int kBlock>
__global__ void __launch_bounds__(kBlock) perturb_kernel(const PerturbParams p) {
  using Vec = Pack<scalar_t, kVec>;
  const int64_t row = Team::index();
  if (row >= p.batch) return;  // whole teams leave
  const int64_t packs = p.size / kVec, first = row * packs;
  const auto *x = static_cast<const Vec*>(p.x) + first, *g = static_cast<const Vec*>(p.grad) + first;
  auto* out = static_cast<Vec*>(p.out) + first;
  const int rank = Team::rank(), size = Team::size(), end = static_cast<int>(packs);

  Vec x_in[kInFlight<Vec>], g_in[kInFlight<Vec>];
#pragma unroll
  for (int u = 0; u < kInFlight<Vec>; ++u)
    if (rank + u * size < end) {
      g_in[u] = g[rank + u * size];
      x_in[u] = x[rank + u * size];
    }
  TotalOf<scalar_t> total{};
#pragma unroll
  for (int u = 0; u < kInFlight<Vec>; ++u)
    if (rank + u * size < end) add_squares(total, g_in[u]);
  const Step<scalar_t> step(Team::reduce(total, Sum{}), tau_of(p, row));
  if (rank == 0) store_norm<scalar_t>(p, row, step.norm);
  if (step.moves)
    step.visit([&](auto f) {
#pragma unroll
      for (int u = 0; u < kInFlight<Vec>; ++u)
        if (rank + u * size < end) move(x_in[u], g_in[u], f);
    });
#pragma unroll
  for (int u = 0; u < kInFlight<Vec>; ++u)
    if (rank + u * size < end) out[rank + u * size] = x_in[u];
}

// A block per slice: where it lies in the arrays, in packs.
template <int kVec>
struct Slice {
  int64_t row, slice, first, packs;

  __device__ Slice(int64_t size, const RowSplit& split) {
    const unsigned slices = static_cast<unsigned>(split.slices);
    row = blockIdx.x / slices;
    slice = blockIdx.x % slices;
    const int64_t begin = slice * split.length, end = begin + split.length;
    first = (row * size + begin) / kVec;
    packs = ((end < size ? end : size) - begin) / kVec;
  }
};

// The slices of a row are neighbours: a cluster of as many blocks, or a block if there is one.
template <class scalar_t, int kVec>
__global__ void __launch_bounds__(kSliceBlock, kSlicesAtOnce<scalar_t>)
    perturb_slices_kernel(const PerturbParams p, const RowSplit split) {
  using Vec = Pack<scalar_t, kVec>;
  using Total = TotalOf<scalar_t>;
  static_assert(sizeof(Total) <= kSliceHeader && kSliceHeader % kPackBytes == 0, "entries begin where packs may");
  auto* own_total = dynamic_shared<Total>();
  auto* kept = reinterpret_cast<Vec*>(dynamic_shared<unsigned char>() + kSliceHeader);
  const Slice<kVec> s(p.size, split);
  const auto* g = static_cast<const Vec*>(p.grad) + s.first;

  Vec g_in[kInFlight<Vec>];
  Total total{};
  const auto load = [&](int u, int64_t i) { g_in[u] = g[i]; };
  each_pack<kInFlight<Vec>>(threadIdx.x, kSliceBlock, s.packs, load, [&](int u, int64_t i) {
    kept[i] = g_in[u];
    add_squares(total, g_in[u]);
  });
  const auto* x = static_cast<const Vec*>(p.x) + s.first;
  Vec x_in[kAhead<Vec>];
  load_packs(x_in, x, threadIdx.x, s.packs);
  total = BlockTeam::reduce(total, Sum{});
  if (split.slices > 1) {
    if (threadIdx.x == 0) *own_total = total;
    sync_cluster();  // the sums of all blocks are there
    total = combine(split.slices, Total{}, Sum{}, [&](int64_t b) { return *in_block(own_total, static_cast<int>(b)); });
    arrive_at_cluster();  // before anything is written, which a barrier after it would wait for
  }

  const Step<scalar_t> step(total, tau_of(p, s.row));
  if (s.slice == 0 && threadIdx.x == 0) store_norm<scalar_t>(p, s.row, step.norm);
  take_step(step, x, x_in, kept, static_cast<Vec*>(p.out) + s.first, s.packs);
  if (split.slices > 1) wait_for_cluster();  // nobody reads the sum of a block that has left
}

template <class scalar_t, int kVec>
__global__ void __launch_bounds__(kSliceBlock, kSlicesAtOnce<scalar_t>)
    sum_slices_kernel(const PerturbParams p, const RowSplit split) {
  const Slice<kVec> s(p.size, split);
  using Vec = Pack<scalar_t, kVec>;
  const auto* g = static_cast<const Vec*>(p.grad) + s.first;
  Vec g_in[kInFlight<Vec>];
  TotalOf<scalar_t> total{};
  const auto load = [&](int u, int64_t i) { g_in[u] = g[i]; };
  each_pack<kInFlight<Vec>>(threadIdx.x, kSliceBlock, s.packs, load,
                            [&](int u, int64_t) { add_squares(total, g_in[u]); });
  total = BlockTeam::reduce(total, Sum{});
  if (threadIdx.x == 0) static_cast<TotalOf<scalar_t>*>(p.workspace)[blockIdx.x] = total;
}

template <class scalar_t, int kVec>
__global__ void __launch_bounds__(kSliceBlock, kSlicesAtOnce<scalar_t>)
    step_slices_kernel(const PerturbParams p, const RowSplit split) {
  using Vec = Pack<scalar_t, kVec>;
  using Total = TotalOf<scalar_t>;
  const Slice<kVec> s(p.size, split);
  const auto* x = static_cast<const Vec*>(p.x) + s.first;
  Vec x_in[kAhead<Vec>];
  load_packs(x_in, x, threadIdx.x, s.packs);
  const auto* totals = static_cast<const Total*>(p.workspace) + s.row * split.slices;
  const Total total = combine(split.slices, Total{}, Sum{}, [&](int64_t b) { return totals[b]; });
  const Step<scalar_t> step(total, tau_of(p, s.row));
  if (s.slice == 0 && threadIdx.x == 0) store_norm<scalar_t>(p, s.row, step.norm);
  take_step(step, x, x_in, static_cast<const Vec*>(p.grad) + s.first, static_cast<Vec*>(p.out) + s.first, s.packs);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

// Whether the blocks of a row see each other's sums. The workspace and the launch go by it, and so it asks one kernel,
// whatever the packs: all of this file are compiled for the same architectures.
template <class scalar_t>
static bool is_one_launch(const RowSplit& split) {
  return split.slices == 1 || (split.on_chip && runs_in_clusters<perturb_slices_kernel<scalar_t, 1>>());
}

template <class scalar_t, int kVec>
static void launch_rows(const PerturbParams& p, CUstream_st* stream) {
  using Warp = LaneTeam<kWarpSize>;
  constexpr int kOfThread = kInFlight<Pack<scalar_t, kVec>>;
  const int64_t packs = p.size / kVec;
  if (packs <= kOfThread * kWarpSize) {
    const int64_t grid = ceil_div(p.batch, kWarpsBlock / kWarpSize);
    launch_kernel<perturb_kernel<scalar_t, kVec, Warp, kWarpsBlock>>({grid, kWarpsBlock}, stream, p);
  } else if (packs <= kOfThread * kRowBlock) {
    int block = 2 * kWarpSize;
    while (block * kOfThread < packs) block *= 2;
    launch_kernel<perturb_kernel<scalar_t, kVec, BlockTeam, kRowBlock>>({p.batch, block}, stream, p);
  } else {
    const RowSplit split = split_row<scalar_t>(p.size);
    const int64_t grid = p.batch * split.slices;
    if (is_one_launch<scalar_t>(split)) {
      const size_t shared_bytes = kSliceHeader + static_cast<size_t>(split.length) * sizeof(scalar_t);
      launch_kernel<perturb_slices_kernel<scalar_t, kVec>>(
          {grid, kSliceBlock, shared_bytes, static_cast<int>(split.slices)}, stream, p, split);
    } else {
      launch_kernel<sum_slices_kernel<scalar_t, kVec>>({grid, kSliceBlock}, stream, p, split);
      launch_kernel<step_slices_kernel<scalar_t, kVec>>({grid, kSliceBlock}, stream, p, split);
    }
  }
}

int64_t perturb_workspace(Dtype dtype, int64_t batch, int64_t size) {
  int64_t doubles = 0;
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    const RowSplit split = split_row<scalar_t>(size);
    if (!is_one_launch<scalar_t>(split))
      doubles = batch * split.slices * static_cast<int64_t>(sizeof(TotalOf<scalar_t>) / sizeof(double));
  });
  return doubles;
}

void launch_perturb(Dtype dtype, const PerturbParams& p, CUstream_st* stream) {
  if (p.batch == 0) return;
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVec = kPackSize<scalar_t>;
    const bool packs = p.size % kVec == 0 && is_aligned(p.x, kPackBytes) && is_aligned(p.grad, kPackBytes) &&
                       is_aligned(p.out, kPackBytes);
    packs ? launch_rows<scalar_t, kVec>(p, stream) : launch_rows<scalar_t, 1>(p, stream);
  });
}

}  // namespace hrrl::cuda
