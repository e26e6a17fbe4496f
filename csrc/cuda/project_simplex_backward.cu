// The gradient of the projection onto the simplex: out = 1_S (g - mean_S g) with the support S = {p > 0}.
//
// p and g are read once and out is written once, as many entries as a thread can hold of both at a time. The length of
// a row chooses who works on it: a warp, a block of 64 to 512 threads, or up to 8 such blocks, a cluster, which read
// each other's sums. Longer rows, and devices without clusters, take two launches that both read p and g.
//
// Slices follow from the length alone and are added up in their order, so the cluster and the two launches give the
// same bits.
#include "cuda/blocks.cuh"
#include "cuda/kernel_launch.cuh"

namespace hrrl::cuda {

constexpr int kHeldPacks = 4;  // of p and of g, that a thread keeps in registers: twice 16 of them
constexpr int kThreads = 512;  // of a block at most: with more there are too few registers

struct SupportMean {  // what it is made of
  double sum, count;
  template <class scalar_t>
  __device__ void add(scalar_t p, scalar_t g) {
    const bool inside = to_acc(p) > 0;
    sum += inside ? static_cast<double>(to_acc(g)) : 0.0;
    count += inside;
  }
};
__device__ inline SupportMean operator+(SupportMean a, SupportMean b) { return {a.sum + b.sum, a.count + b.count}; }
__device__ inline SupportMean shuffle_xor(unsigned mask, SupportMean s, int offset) {
  return {shuffle_xor(mask, s.sum, offset), shuffle_xor(mask, s.count, offset)};
}

enum class Pass { kWhole, kSums, kWrite };  // in one launch, or the two of them

struct Slices {
  unsigned count;
  int64_t length;  // in packs; the last of a row may be shorter
};

// A team for each slice of a row.
template <class scalar_t, int kVec, class Team, int kBlock, Pass kPass>
__global__ void __launch_bounds__(kBlock)
    project_simplex_backward_kernel(const ProjectSimplexBackwardParams params, const Slices slices) {
  using Vec = Pack<scalar_t, kVec>;
  constexpr bool kSliced = std::is_same_v<Team, BlockTeam>;
  const int64_t row = kSliced ? blockIdx.x / slices.count : Team::index();
  if (row >= params.rows) return;  // whole teams leave
  const int64_t packs = params.size / kVec, begin = kSliced ? blockIdx.x % slices.count * slices.length : 0;
  const int end = static_cast<int>(begin + slices.length < packs ? slices.length : packs - begin);
  const int rank = Team::rank(), size = Team::size();
  const auto *p = static_cast<const Vec*>(params.p) + row * packs + begin,
             *g = static_cast<const Vec*>(params.grad) + row * packs + begin;
  auto* out = static_cast<Vec*>(params.out) + row * packs + begin;

  Vec p_in[kHeldPacks], g_in[kHeldPacks];
#pragma unroll
  for (int u = 0; u < kHeldPacks; ++u)
    if (rank + u * size < end) {
      p_in[u] = p[rank + u * size];
      g_in[u] = g[rank + u * size];
    }

  SupportMean total{};
  auto* totals = reinterpret_cast<SupportMean*>(params.workspace);
  if constexpr (kPass == Pass::kWrite) {
    total = combine(slices.count, SupportMean{}, Sum{}, [&](int64_t s) { return totals[row * slices.count + s]; });
  } else {
#pragma unroll
    for (int u = 0; u < kHeldPacks; ++u)
      if (rank + u * size < end)
#pragma unroll
        for (int e = 0; e < kVec; ++e) total.add(p_in[u].value[e], g_in[u].value[e]);
    total = Team::reduce(total, Sum{});
    if constexpr (kPass == Pass::kSums) {
      if (rank == 0) totals[blockIdx.x] = total;
      return;
    }
    if (kSliced && slices.count > 1) {
      auto* own = dynamic_shared<SupportMean>();
      if (rank == 0) *own = total;
      sync_cluster();  // the sums of all blocks are there
      total =
          combine(slices.count, SupportMean{}, Sum{}, [&](int64_t s) { return *in_block(own, static_cast<int>(s)); });
      arrive_at_cluster();
    }
  }

  const double mean = total.sum / total.count;
#pragma unroll
  for (int u = 0; u < kHeldPacks; ++u)
    if (rank + u * size < end) {
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        const double moved = static_cast<double>(to_acc(g_in[u].value[e])) - mean;
        assign(g_in[u].value[e],
               to_acc(p_in[u].value[e]) > 0 ? static_cast<acc_type<scalar_t>>(moved) : acc_type<scalar_t>{});
      }
      out[rank + u * size] = g_in[u];
    }
  if (kSliced && kPass == Pass::kWhole && slices.count > 1)
    wait_for_cluster();  // nobody reads the sum of a block that has left
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

constexpr int64_t kSlicePacks = kHeldPacks * kThreads;
constexpr int kWarpsOfBlock = 256;  // threads of a block whose warps take a row each

// Of its length in packs alone; a cluster has a power of two of blocks.
static int64_t slices_of(int64_t packs) {
  const int64_t slices = ceil_div(packs, kSlicePacks);
  int64_t blocks = 1;
  while (blocks < slices) blocks *= 2;
  return blocks <= kClusterBlocks ? blocks : slices;
}

template <class scalar_t>
static int64_t pack_of(const ProjectSimplexBackwardParams& p) {
  const bool packs = p.size % kPackSize<scalar_t> == 0 && is_aligned(p.p, kPackBytes) &&
                     is_aligned(p.grad, kPackBytes) && is_aligned(p.out, kPackBytes);
  return packs ? kPackSize<scalar_t> : 1;
}

// Whether the blocks of a row see each other's sums. The workspace goes by it, too, and so it asks one kernel.
template <class scalar_t>
static bool is_one_launch(int64_t slices) {
  constexpr auto kKernel = project_simplex_backward_kernel<scalar_t, 1, BlockTeam, kThreads, Pass::kWhole>;
  return slices == 1 || (slices <= kClusterBlocks && runs_in_clusters<kKernel>());
}

template <class scalar_t, int kVec>
static void launch_rows(const ProjectSimplexBackwardParams& p, CUstream_st* stream) {
  using Warp = LaneTeam<kWarpSize>;
  const int64_t packs = p.size / kVec, slices = slices_of(packs), grid = p.rows * slices;
  const Slices parts{static_cast<unsigned>(slices), ceil_div(packs, slices)};
  if (packs <= kHeldPacks * kWarpSize) {
    launch_kernel<project_simplex_backward_kernel<scalar_t, kVec, Warp, kWarpsOfBlock, Pass::kWhole>>(
        {ceil_div(p.rows, kWarpsOfBlock / kWarpSize), kWarpsOfBlock}, stream, p, parts);
    return;
  }
  int block = 2 * kWarpSize;
  while (block < kThreads && block * kHeldPacks * slices < packs) block *= 2;
  if (is_one_launch<scalar_t>(slices)) {
    launch_kernel<project_simplex_backward_kernel<scalar_t, kVec, BlockTeam, kThreads, Pass::kWhole>>(
        {grid, block, slices > 1 ? sizeof(SupportMean) : 0, static_cast<int>(slices)}, stream, p, parts);
    return;
  }
  launch_kernel<project_simplex_backward_kernel<scalar_t, kVec, BlockTeam, kThreads, Pass::kSums>>({grid, block},
                                                                                                   stream, p, parts);
  launch_kernel<project_simplex_backward_kernel<scalar_t, kVec, BlockTeam, kThreads, Pass::kWrite>>({grid, block},
                                                                                                    stream, p, parts);
}

int64_t project_simplex_backward_workspace(Dtype dtype, const ProjectSimplexBackwardParams& p) {
  int64_t doubles = 0;
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    const int64_t slices = slices_of(p.size / pack_of<scalar_t>(p));
    if (!is_one_launch<scalar_t>(slices)) doubles = 2 * p.rows * slices;
  });
  return doubles;
}

void launch_project_simplex_backward(Dtype dtype, const ProjectSimplexBackwardParams& p, CUstream_st* stream) {
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVec = kPackSize<scalar_t>;
    pack_of<scalar_t>(p) == kVec ? launch_rows<scalar_t, kVec>(p, stream) : launch_rows<scalar_t, 1>(p, stream);
  });
}

}  // namespace hrrl::cuda
