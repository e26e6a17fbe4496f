// The concept-weighted cross-entropy, its gradient in the same visit, and its sums per concept, in one launch.
//
//   l_i = log sum_j exp(z_ij) - (1 - eps) z_iy - eps mean_j z_ij            eps: label smoothing
//   d loss / d z_ij = w_i / B (softmax(z_i)_j - (1 - eps) [j = y] - eps / C)
//   w_i = q_k / p_k,  p_k = N_k / N,  k = concept_i
//   concept_loss_k = 1/B sum_{i in k} l_i / p_k,  loss = sum_k q_k concept_loss_k
//
// q is known before the loss, so the gradient leaves with the forward pass. The launch is cooperative: no more blocks
// than the device holds at once go through the rows, and wait for each other before the sums. Against the other ways to
// one launch: counting the blocks that have finished needs a counter that starts at 0 (a launch, or one that streams
// and replayed graphs would share), atomic sums need integers that a float64 loss does not fit.
//
// Sums are formed in double: over lanes within a segment of the batch, then segment by segment. None of it depends on
// which block takes what: equal inputs give equal bits on every device.
#include "cuda/blocks.cuh"
#include "cuda/class_row.cuh"
#include "cuda/kernel_launch.cuh"

namespace hrrl::cuda {

constexpr int kFewClasses = 64, kFewLanes = 8;  // up to so many classes so many lanes
constexpr int kWarpClasses = 1024;              // up to so many a warp; a block beyond
constexpr int kBlockClasses = 8192;             // that the registers of kRowBlock threads hold
constexpr int kLanesBlock = 128, kRowBlock = 256;
// Blocks on a multiprocessor at once: the compiler leaves registers for so many. The grid goes by what it really left.
constexpr int kFewBlocksAtOnce = 7, kLanesBlocksAtOnce = 5, kRowBlocksAtOnce = 2;
constexpr int64_t kCountSlice = 1024;  // concepts whose N_k a warp adds up
constexpr int64_t kSegment = 1024;     // examples over which a warp sums the losses of a concept
constexpr int64_t kFewSums = 16384;    // concepts x examples that one block takes sooner than a barrier

template <class scalar_t>
struct GradOf {
  using type = scalar_t;
};
template <>
struct GradOf<__half> {
  using type = float;  // half has no room for p / B before a loss scale (csrc/concept_cross_entropy.h)
};
template <class scalar_t>
using grad_type = typename GradOf<scalar_t>::type;

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

// In CrossEntropyParams::workspace: sums of N_k, one per slice; then sums of losses [segments, K + 1]. The last column
// is that of examples whose concept does not exist: NaN if there is one, for their losses are.
__device__ inline double* segment_sums(const CrossEntropyParams& p) {
  return p.workspace + (p.concepts + kCountSlice - 1) / kCountSlice;
}

// ---------------------------------------------------------------------------------------------------------------------
// Parts of the kernel

// The warps of all blocks, or those of this one
struct Warps {
  int64_t first, count;
  __device__ explicit Warps(bool of_grid) : first(threadIdx.x / kWarpSize), count(blockDim.x / kWarpSize) {
    if (!of_grid) return;
    first += blockIdx.x * count;
    count *= gridDim.x;
  }
};

// N. The concepts of one slice are added up by every warp for itself, many slices by the whole grid.
__device__ inline double total_count(const CrossEntropyParams& p) {
  const int64_t slices = (p.concepts + kCountSlice - 1) / kCountSlice;
  const auto sum_slice = [&](int64_t slice) {
    const int64_t first = slice * kCountSlice, left = p.concepts - first;
    return combine(left < kCountSlice ? left : kCountSlice, 0.0, Sum{},
                   [&](int64_t k) { return load(p.concept_count, first + k); });
  };
  if (slices == 1) return sum_slice(0);
  const Warps warps(true);
  for (int64_t slice = warps.first; slice < slices; slice += warps.count) {
    const double sum = sum_slice(slice);
    if (threadIdx.x % kWarpSize == 0) p.workspace[slice] = sum;
  }
  sync_grid();
  return combine(slices, 0.0, Sum{}, [&](int64_t slice) { return p.workspace[slice]; });
}

// Example i by its team: l_i and the row of the gradient.
template <class scalar_t, class Team, class Row>
__device__ void take_example(const CrossEntropyParams& p, double total, int64_t i, const Row& row) {
  using acc_t = acc_type<scalar_t>;
  using grad_t = grad_type<scalar_t>;
  const int64_t y = p.target[i], k = p.concept_[i];
  const bool known = y >= 0 && y < p.classes && k >= 0 && k < p.concepts;
  const double count = known ? load(p.concept_count, k) : 0.0;
  const bool valid = count > 0.0;
  const double eps = p.label_smoothing, classes = static_cast<double>(p.classes);
  const acc_t target = valid ? to_acc(static_cast<const scalar_t*>(p.logits)[i * p.classes + y]) : acc_t{0};

  // A NaN never wins the maximum, but z - max is NaN with it and so is everything after.
  acc_t largest = static_cast<acc_t>(-HUGE_VAL);
  row.each([&](int64_t, acc_t z_j) { largest = Max{}(largest, z_j); });
  largest = Team::reduce(largest, Max{});

  acc_t exp_sum_of_thread = 0;
  double shifted_sum = 0.0;  // for the mean logit
  row.each([&](int64_t, acc_t z_j) {
    exp_sum_of_thread += exponential(z_j - largest);
    if (eps > 0.0) shifted_sum += static_cast<double>(z_j - largest);
  });
  const double exp_sum = Team::reduce(static_cast<double>(exp_sum_of_thread), Sum{});
  if (eps > 0.0) shifted_sum = Team::reduce(shifted_sum, Sum{});

  const acc_t shifted_target = valid ? target - largest : static_cast<acc_t>(NAN);
  if (Team::rank() == 0) {
    double loss = log(exp_sum) - (1.0 - eps) * static_cast<double>(shifted_target);
    if (eps > 0.0) loss -= eps * shifted_sum / classes;
    static_cast<acc_t*>(p.example_loss)[i] = static_cast<acc_t>(loss);
  }
  if (!p.grad_logits) return;

  // q_k / p_k and not q_k (N / N_k): q = q0 = N_k / N then gives exactly 1.
  const double weight = valid ? load(p.q, k) / (count / total) / static_cast<double>(p.batch) : NAN;
  const acc_t scale = static_cast<acc_t>(weight / exp_sum);
  const acc_t uniform = static_cast<acc_t>(weight * eps / classes);
  const double p_target = static_cast<double>(exponential(shifted_target)) / exp_sum;
  const acc_t at_target = static_cast<acc_t>(weight * (p_target - (1.0 - eps) - eps / classes));
  row.map(static_cast<grad_t*>(p.grad_logits) + i * p.classes,
          [&](int64_t j, acc_t z_j) { return j == y ? at_target : exponential(z_j - largest) * scale - uniform; });
}

// sums[s, k]: the losses of concept k in segment s, by a warp each.
template <class loss_t>
__device__ void sum_segments(const CrossEntropyParams& p, const Warps& warps) {
  const auto* example_loss = static_cast<const loss_t*>(p.example_loss);
  const int64_t columns = p.concepts + 1, segments = (p.batch + kSegment - 1) / kSegment;
  for (int64_t task = warps.first; task < segments * columns; task += warps.count) {
    const int64_t begin = task / columns * kSegment, left = p.batch - begin, k = task % columns;
    const double sum = combine(left < kSegment ? left : kSegment, 0.0, Sum{}, [&](int64_t i) {
      const int64_t concept_ = p.concept_[begin + i];
      const auto loss = static_cast<double>(example_loss[begin + i]);
      const bool exists = concept_ >= 0 && concept_ < p.concepts;
      return (exists ? concept_ : p.concepts) == k ? loss : 0.0;
    });
    if (threadIdx.x % kWarpSize == 0) segment_sums(p)[task] = sum;
  }
}

// concept_loss and loss, by one block.
template <class loss_t>
__device__ void sum_losses(const CrossEntropyParams& p, double total) {
  const double* sums = segment_sums(p);
  const int64_t columns = p.concepts + 1, segments = (p.batch + kSegment - 1) / kSegment;
  double loss = 0.0;
  for (int64_t k = threadIdx.x; k < columns; k += blockDim.x) {
    double sum = 0.0;
    for (int64_t s = 0; s < segments; ++s) sum += sums[s * columns + k];
    if (k == p.concepts) {
      loss += sum;
    } else {
      const double expected = load(p.concept_count, k) / total * static_cast<double>(p.batch);
      const double concept_loss = sum == 0.0 ? 0.0 : sum / expected;  // 0: absent, whatever N_k and q_k are
      if (concept_loss != 0.0) loss += load(p.q, k) * concept_loss;
      store(p.concept_loss, k, concept_loss);
    }
  }
  loss = BlockTeam::reduce(loss, Sum{});
  if (threadIdx.x == 0) *static_cast<loss_t*>(p.loss) = static_cast<loss_t>(loss);
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel

// A team per example, and as many examples as it takes. kThreads is the bound of the block size.
template <class scalar_t, class Team, class Row, int kThreads, int kAtOnce>
__global__ void __launch_bounds__(kThreads, kAtOnce) concept_cross_entropy_kernel(const CrossEntropyParams p) {
  using loss_t = acc_type<scalar_t>;
  const int64_t teams = static_cast<int64_t>(gridDim.x) * (blockDim.x / Team::size());
  const auto row_of = [&](int64_t i) {
    const bool exists = i < p.batch;
    return Row(static_cast<const scalar_t*>(p.logits) + (exists ? i : 0) * p.classes, exists ? p.classes : 0);
  };
  int64_t i = Team::index();
  Row row = row_of(i);  // on its way while N is formed
  const double total = total_count(p);
  for (; i < p.batch; i += teams, row = row_of(i)) take_example<scalar_t, Team>(p, total, i, row);

  sync_grid();  // all losses are there
  const bool few = (p.concepts + 1) * p.batch <= kFewSums;
  if (few && blockIdx.x > 0) return;
  sum_segments<loss_t>(p, Warps(!few));
  if (few)
    __syncthreads();
  else
    sync_grid();
  if (blockIdx.x == 0) sum_losses<loss_t>(p, total);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

template <class scalar_t, class Team, class Row, int kThreads, int kAtOnce>
static void launch_teams(const CrossEntropyParams& p, int64_t rows_per_block, CUstream_st* stream) {
  constexpr auto kKernel = concept_cross_entropy_kernel<scalar_t, Team, Row, kThreads, kAtOnce>;
  const int64_t room = resident_blocks<kKernel, kThreads>();
  int64_t grid = ceil_div(p.batch, rows_per_block);
  if (grid > room) grid = room;
  if (grid < 1) grid = 1;  // an empty batch has sums, too; no barrier of the grid without a room
  launch_kernel<kKernel>({grid, kThreads, 0, 1, grid > 1}, stream, p);
}

template <class scalar_t, int kVec>
static void launch_rows(const CrossEntropyParams& p, CUstream_st* stream) {
  using Few = LaneTeam<kFewLanes>;
  using Warp = LaneTeam<kWarpSize>;
  using Block = BlockOf<kRowBlock>;
  // Registers hold a row of doubles badly, and few train in double; the same goes for rows that packs do not fit.
  constexpr bool kFloats = sizeof(scalar_t) < sizeof(double), kInRegisters = kFloats && kVec > 1;
  using FewRow = std::conditional_t<kFloats, RegisterRow<scalar_t, 1, Few, kFewClasses>, StreamedRow<scalar_t, 1, Few>>;
  using WarpRow = std::conditional_t<kInRegisters, RegisterRow<scalar_t, kVec, Warp, kWarpClasses>,
                                     StreamedRow<scalar_t, kVec, Warp>>;
  using BlockRow = std::conditional_t<kInRegisters, RegisterRow<scalar_t, kVec, Block, kBlockClasses>,
                                      StreamedRow<scalar_t, kVec, Block>>;

  if (p.classes <= kFewClasses)
    launch_teams<scalar_t, Few, FewRow, kLanesBlock, kFewBlocksAtOnce>(p, kLanesBlock / kFewLanes, stream);
  else if (p.classes <= kWarpClasses)
    launch_teams<scalar_t, Warp, WarpRow, kLanesBlock, kLanesBlocksAtOnce>(p, kLanesBlock / kWarpSize, stream);
  else if (p.classes <= kBlockClasses || !kFloats)
    launch_teams<scalar_t, Block, BlockRow, kRowBlock, kRowBlocksAtOnce>(p, 1, stream);
  else if constexpr (kFloats)
    launch_teams<scalar_t, BlockTeam, StreamedRow<scalar_t, kVec, BlockTeam>, kMaxBlockSize, 1>(p, 1, stream);
}

int64_t cross_entropy_workspace(int64_t batch, int64_t concepts) {
  return ceil_div(concepts, kCountSlice) + ceil_div(batch, kSegment) * (concepts + 1);
}

void launch_concept_cross_entropy(Dtype dtype, const CrossEntropyParams& p, CUstream_st* stream) {
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVec = kPackSize<scalar_t>;
    const bool packs = p.classes % kVec == 0 && is_aligned(p.logits, kPackBytes) &&
                       is_aligned(p.grad_logits, kVec * sizeof(grad_type<scalar_t>));
    packs ? launch_rows<scalar_t, kVec>(p, stream) : launch_rows<scalar_t, 1>(p, stream);
  });
}

}  // namespace hrrl::cuda
