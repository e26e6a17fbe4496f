// The projection onto the simplex, and the step of q that ends in one: one launch, whatever the length.
//
// Newton's method for the threshold nu, explained in csrc/cpu/kernels/project_simplex.cpp: same steps, same shift by
// the maximum, everything double inside. Its rounds cost a visit to the entries and a barrier, and both are kept small:
// - A row waits in shared memory: that of a block, of a cluster of 8, or of a grid of up to 96 blocks, whose barriers a
//   cooperative launch provides. Longer rows are read again in every round, from cache.
// - nu only grows, so what is below it is out for good: a thread drops it from its list.
// - nu of a part of the row is at or below nu of the row, for a part has less to spend. So every warp solves its own
//   part first, without a barrier; a block starts from the best of its warps, the blocks from the best of theirs. Few
//   rounds are left that need the wider barrier.
//
// Parts follow from shapes alone. A device that does not hold the blocks of a grid at once takes as many blocks as it
// has multiprocessors, or one if it cannot hold these either: there, and there only, the last bit may differ.
#include <utility>

#include "cuda/blocks.cuh"
#include "cuda/kernel_launch.cuh"

namespace hrrl::cuda {

constexpr int kPerThread = 8;  // entries of a thread, until the block is full
// Doubles of a row that a block holds: with what reductions need they fit 99 KB, the least that any device gives a
// block.
constexpr int64_t kBlockEntries = 12536;
constexpr int64_t kReductions = 1024;  // bytes, at most
static_assert(sizeof(double) * (kSlots + kBlockEntries) + kReductions <= 99 * 1024, "too many for consumer GPUs");
constexpr int kGridBlocks = 96;
constexpr int64_t kManyRows = 32;    // as many rows keep the device busy with a block each
constexpr int64_t kMaxGrid = 65536;  // blocks beyond take several rows each

// ---------------------------------------------------------------------------------------------------------------------
// Where v comes from: v_rj is row(r).value(row(r).fetch(j)), a load and what follows. kAtOnce loads are started before
// the first is used.

template <class scalar_t>
struct GivenRows {
  const scalar_t* v;
  int64_t size;

  struct Row {
    static constexpr int kAtOnce = kPerThread;
    const scalar_t* v;
    __device__ scalar_t fetch(int64_t j) const { return v[j]; }
    __device__ double value(scalar_t v_j) const { return static_cast<double>(to_acc(v_j)); }
  };
  __device__ Row row(int64_t r) const { return {v + r * size}; }
};

// The distribution after the ascent of Eq. 6, before it is projected.
__device__ inline double ascend(double q, double concept_loss, double q0, double step, double lam) {
  return q + step * (concept_loss - lam * (q - q0));
}
struct Ascent {
  UpdateDistributionParams update;
  Schedule schedule;  // or none: t is null

  __device__ double step() const {
    if (!schedule.t) return update.eta_scale ? update.eta * *update.eta_scale : update.eta;
    const int64_t t = *schedule.t + 1;
    const double eta = 1.0 / (update.lam * static_cast<double>(t));
    return t <= schedule.s ? eta / load(schedule.c, 0) : eta;
  }
};

template <class scalar_t>
struct AscendedDistribution {  // q, concept_loss and q0 of one type
  Ascent ascent;

  struct Row {
    static constexpr int kAtOnce = kPackSize<scalar_t>;  // 12 registers: more would not fit 1024 threads
    const scalar_t *q, *concept_loss, *q0;
    double step, lam;
    struct Inputs {
      scalar_t q, concept_loss, q0;
    };
    __device__ Inputs fetch(int64_t k) const { return {q[k], concept_loss[k], q0[k]}; }
    __device__ double value(Inputs k) const { return ascend(k.q, k.concept_loss, k.q0, step, lam); }
  };
  __device__ Row row(int64_t) const {
    const UpdateDistributionParams& p = ascent.update;
    return {static_cast<const scalar_t*>(p.q.data), static_cast<const scalar_t*>(p.concept_loss.data),
            static_cast<const scalar_t*>(p.q0.data), ascent.step(), p.lam};
  }
};

struct AscendedMixture {  // of any types: slower, and without a launch for each conversion
  Ascent ascent;

  struct Row {
    static constexpr int kAtOnce = 1;
    UpdateDistributionParams p;
    double step;
    __device__ int64_t fetch(int64_t k) const { return k; }
    __device__ double value(int64_t k) const {
      return ascend(load(p.q, k), load(p.concept_loss, k), load(p.q0, k), step, p.lam);
    }
  };
  __device__ Row row(int64_t) const { return {ascent.update, ascent.step()}; }
};

struct Target {
  MutableReals out;
  int64_t rows, size;
  double radius;
  double* workspace;
  int64_t* t;  // of a schedule, or null
};

// ---------------------------------------------------------------------------------------------------------------------
// What is summed over threads and blocks

// The entries above nu
struct Support {
  double sum, count;
};
__device__ inline Support operator+(Support a, Support b) { return {a.sum + b.sum, a.count + b.count}; }
__device__ inline Support shuffle_xor(unsigned mask, Support s, int offset) {
  return {shuffle_xor(mask, s.sum, offset), shuffle_xor(mask, s.count, offset)};
}

// A maximum, and a threshold for what is shifted by it
struct Bound {
  double max, nu;
};
struct Best {  // the greater threshold, for what is shifted by the greater maximum
  __device__ Bound operator()(Bound a, Bound b) const {
    const Bound high = a.max > b.max ? a : b, low = a.max > b.max ? b : a;
    return {high.max, Max{}(high.nu, (low.max - high.max) + low.nu)};
  }
};
__device__ inline Bound shuffle_xor(unsigned mask, Bound b, int offset) {
  return {shuffle_xor(mask, b.max, offset), shuffle_xor(mask, b.nu, offset)};
}

// ---------------------------------------------------------------------------------------------------------------------
// The entries of a thread among those, [begin, end) of a row, that belong to its block

// Calls f(j, v_j) for every one.
template <class Row, class F>
__device__ void each_entry(const Row& row, int64_t begin, int64_t end, F f) {
  constexpr int kAtOnce = Row::kAtOnce;
  const int64_t size = blockDim.x;
  for (int64_t j = begin + threadIdx.x; j < end; j += kAtOnce * size) {
    decltype(row.fetch(0)) inputs[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (j + u * size < end) inputs[u] = row.fetch(j + u * size);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (j + u * size < end) f(j + u * size, row.value(inputs[u]));
  }
}

// Both have the maximum of the entries, and above(nu, max), the support of v - max; nu must not fall between calls.
// Infinity stands for NaN, too: neither has a projection.
__device__ inline double with_nan_as_inf(double v) { return v < HUGE_VAL ? v : HUGE_VAL; }

// Entries that may still be above nu wait in shared memory. A thread only visits its own: no barrier is needed.
template <class Row>
struct HeldEntries {
  double* own;  // own[e * blockDim.x]
  int count = 0;
  double max = -HUGE_VAL;

  __device__ HeldEntries(const Row& row, int64_t begin, int64_t end, double* shared) : own(shared + threadIdx.x) {
    each_entry(row, begin, end, [&](int64_t, double v) {
      own[count++ * blockDim.x] = v;
      max = Max{}(max, with_nan_as_inf(v));
    });
  }
  __device__ Support above(double nu, double row_max) {
    double sum = 0.0;
    int above = 0;
    for (int e = 0; e < count; ++e) {
      const double v = own[e * blockDim.x], shifted = v - row_max;
      if (!(shifted > nu)) continue;
      sum += shifted;
      own[above++ * blockDim.x] = v;
    }
    count = above;
    return {sum, static_cast<double>(above)};
  }
};

template <class Row>
struct StreamedEntries {
  Row row;
  int64_t begin, end;
  double max = -HUGE_VAL;

  __device__ StreamedEntries(const Row& row, int64_t begin, int64_t end, double*) : row(row), begin(begin), end(end) {
    each_entry(row, begin, end, [&](int64_t, double v) { max = Max{}(max, with_nan_as_inf(v)); });
  }
  __device__ Support above(double nu, double row_max) {
    double sum = 0.0;
    int64_t above = 0;
    each_entry(row, begin, end, [&](int64_t, double v) {
      const double shifted = v - row_max;
      sum += shifted > nu ? shifted : 0.0;
      above += shifted > nu;
    });
    return {sum, static_cast<double>(above)};
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Kernel

// Newton's method from nu, at or below the root for the entries that all(support) sums over, v shifted by max.
template <class Entries, class All>
__device__ double climb(Entries& entries, double max, double radius, double nu, All all) {
  for (double last_count = HUGE_VAL;;) {
    const Support support = all(entries.above(nu, max));
    // The support only shrinks. Where rounding would let it grow again the root is reached, too: going on could
    // alternate for ever.
    if (!(support.count < last_count) || support.count == 0.0) return nu;
    last_count = support.count;
    nu = (support.sum - radius) / last_count;
  }
}

// Entries are HeldEntries, in shared memory behind the slots, or StreamedEntries.
template <class Source, class Entries, class Blocks>
__global__ void __launch_bounds__(kMaxBlockSize)
    project_simplex_kernel(const Source source, const Target target, Blocks blocks) {
  const double radius = target.radius;
  const int64_t part = (target.size + blocks.size() - 1) / blocks.size(), begin = blocks.rank() * part;
  const int64_t end = begin + part < target.size ? begin + part : target.size;
  const auto of_warp = [](Support s) { return LaneTeam<kWarpSize>::reduce(s, Sum{}); };
  const auto of_block = [](Support s) { return BlockTeam::reduce(s, Sum{}); };
  const auto of_row = [&](Support s) { return blocks.all(BlockTeam::reduce(s, Sum{}), Support{0.0, 0.0}, Sum{}); };

  for (int64_t r = blocks.first_row(); r < target.rows; r += blocks.row_step()) {
    const auto row = source.row(r);
    Entries entries(row, begin, end, dynamic_shared<double>() + kSlots);
    // At or below the root: the largest entry alone reaches the radius.
    Bound bound{BlockTeam::reduce(entries.max, Max{}), -radius};
    if (fabs(bound.max) < HUGE_VAL) {
      bound.nu = climb(entries, bound.max, radius, bound.nu, of_warp);
      if (blockDim.x > kWarpSize) {
        bound.nu = BlockTeam::reduce(bound.nu, Max{});
        bound.nu = climb(entries, bound.max, radius, bound.nu, of_block);
      }
    }
    if (!Blocks::kAlone) {
      bound = blocks.all(bound, Bound{-HUGE_VAL, -radius}, Best{});
      if (fabs(bound.max) < HUGE_VAL) bound.nu = climb(entries, bound.max, radius, bound.nu, of_row);
    }
    // All threads of the row have met since they read t.
    if (target.t && blocks.rank() == 0 && threadIdx.x == 0) ++*target.t;
    if (!(fabs(bound.max) < HUGE_VAL)) {  // NaN or inf in the row, or nothing above -inf
      if (target.t) break;
      bound.nu = NAN;
    }

    each_entry(row, begin, end, [&](int64_t j, double v) {
      const double p = (v - bound.max) - bound.nu;
      store(target.out, r * target.size + j, p < 0.0 ? 0.0 : p);  // keeps NaN
    });
  }
  blocks.finish();
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

// The blocks that share a row; of shapes alone.
static int64_t blocks_of_row(int64_t rows, int64_t size) {
  if (size <= kBlockEntries || rows >= kManyRows) return 1;
  if (size <= kClusterBlocks * kBlockEntries) return kClusterBlocks;
  const int64_t blocks = ceil_div(size, kBlockEntries);
  return blocks < kGridBlocks ? blocks : kGridBlocks;
}

int64_t simplex_workspace(int64_t rows, int64_t size) {
  const int64_t blocks = blocks_of_row(rows, size);
  return blocks > 1 ? kSlots * blocks : 0;
}

template <class Source>
using RowOf = decltype(std::declval<const Source&>().row(0));

// Doubles of the dynamic shared memory of a block that has a part of the row
static int64_t shared_doubles(int64_t part) { return kSlots + (part <= kBlockEntries ? part : 0); }

template <class Source, class Blocks>
static void launch_parts(int64_t part, LaunchShape shape, CUstream_st* stream, const Source& source,
                         const Target& target, const Blocks& blocks) {
  using Row = RowOf<Source>;
  shape.shared_bytes = sizeof(double) * static_cast<size_t>(shared_doubles(part));
  if (part <= kBlockEntries)
    launch_kernel<project_simplex_kernel<Source, HeldEntries<Row>, Blocks>>(shape, stream, source, target, blocks);
  else
    launch_kernel<project_simplex_kernel<Source, StreamedEntries<Row>, Blocks>>(shape, stream, source, target, blocks);
}

// Whether the device holds so many blocks of a row at once. The room for one is that for the longest part: whatever the
// length, the answer is one per kernel.
template <class Source>
static bool grid_fits(int64_t blocks, int64_t size) {
  using Row = RowOf<Source>;
  using Blocks = GridOfBlocks;
  constexpr size_t kHeldBytes = sizeof(double) * (kSlots + kBlockEntries), kStreamedBytes = sizeof(double) * kSlots;
  constexpr auto kHeld = project_simplex_kernel<Source, HeldEntries<Row>, Blocks>;
  constexpr auto kStreamed = project_simplex_kernel<Source, StreamedEntries<Row>, Blocks>;
  const bool held = ceil_div(size, blocks) <= kBlockEntries;
  return blocks <= (held ? resident_blocks<kHeld, kMaxBlockSize, kHeldBytes>()
                         : resident_blocks<kStreamed, kMaxBlockSize, kStreamedBytes>());
}

template <class Source>
static void launch_rows(const Source& source, const Target& target, CUstream_st* stream) {
  using HeldByCluster = HeldEntries<RowOf<Source>>;
  int64_t blocks = blocks_of_row(target.rows, target.size);
  const auto part = [&] { return ceil_div(target.size, blocks); };
  if (blocks == kClusterBlocks && runs_in_clusters<project_simplex_kernel<Source, HeldByCluster, ClusterOfBlocks>>()) {
    const size_t shared_bytes = sizeof(double) * static_cast<size_t>(shared_doubles(part()));
    launch_kernel<project_simplex_kernel<Source, HeldByCluster, ClusterOfBlocks>>(
        {target.rows * blocks, kMaxBlockSize, shared_bytes, kClusterBlocks}, stream, source, target, ClusterOfBlocks{});
    return;
  }
  const int64_t one_each = multiprocessors();
  if (blocks > one_each && !grid_fits<Source>(blocks, target.size)) blocks = one_each;
  if (blocks > 1 && !grid_fits<Source>(blocks, target.size)) blocks = 1;
  if (blocks > 1) {
    launch_parts(part(), {blocks, kMaxBlockSize, 0, 1, true}, stream, source, target, GridOfBlocks{target.workspace});
    return;
  }
  int block = kWarpSize;
  while (block < kMaxBlockSize && block * kPerThread < target.size) block *= 2;
  const int64_t grid = target.rows < kMaxGrid ? target.rows : kMaxGrid;
  launch_parts(part(), {grid, block}, stream, source, target, OneBlock{});
}

void launch_project_simplex(const ProjectSimplexParams& p, CUstream_st* stream) {
  const Target target{p.out, p.rows, p.size, p.radius, p.workspace, nullptr};
  dispatch(p.v.dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    launch_rows(GivenRows<scalar_t>{static_cast<const scalar_t*>(p.v.data), p.size}, target, stream);
  });
}

static void launch_ascent(const Ascent& ascent, CUstream_st* stream) {
  const UpdateDistributionParams& p = ascent.update;
  const Target target{p.out, 1, p.size, 1.0, p.workspace, ascent.schedule.t};
  const bool alike = p.q.dtype == p.concept_loss.dtype && p.q.dtype == p.q0.dtype;
  if (alike && p.q.dtype == Dtype::kDouble)
    launch_rows(AscendedDistribution<double>{ascent}, target, stream);
  else if (alike && p.q.dtype == Dtype::kFloat)
    launch_rows(AscendedDistribution<float>{ascent}, target, stream);
  else
    launch_rows(AscendedMixture{ascent}, target, stream);
}

void launch_update_distribution(const UpdateDistributionParams& p, CUstream_st* stream) {
  launch_ascent({p, {}}, stream);
}
void launch_step_distribution(const UpdateDistributionParams& p, const Schedule& schedule, CUstream_st* stream) {
  launch_ascent({p, schedule}, stream);
}

}  // namespace hrrl::cuda
