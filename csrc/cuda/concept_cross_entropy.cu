// The concept-weighted cross-entropy, its gradient in the same visit, and its sums per concept.
//
//   l_i = log sum_j exp(z_ij) - (1 - eps) z_iy - eps mean_j z_ij            eps: label smoothing
//   d loss / d z_ij = w_i / B (softmax(z_i)_j - (1 - eps) [j = y] - eps / C)
//   w_i = q_k / p_k,  p_k = N_k / N,  k = concept_i
//   concept_loss_k = 1/B sum_{i in k} l_i / p_k,  loss = sum_k q_k concept_loss_k
//
// q is known before the loss, so the gradient leaves with the forward pass. Two launches: rows, then sums, whose last
// block adds up what all of them found. It counts them in a number that the launch before has set to 0, in a workspace
// of its own, so that streams and replayed graphs share nothing. Many concepts take one more launch before, for N.
// The sums begin while the last rows are worked on: they read the concepts, and wait for the losses.
//
// Sums over examples are formed in double: over lanes within a segment of the batch, then segment by segment. None of
// it depends on which block takes what: equal inputs give equal bits on every device.
#include "cuda/blocks.cuh"
#include "cuda/class_row.cuh"
#include "cuda/kernel_launch.cuh"

namespace hrrl::cuda {

constexpr int kFewClasses = 64, kFewRows = 64;  // up to so many classes a thread a row, of so many to a block
constexpr int kWarpClasses = 1024;              // up to so many a warp
constexpr int kBlockClasses = 8192;             // up to so many a block of kRowBlock threads
constexpr int kWideClasses = 32768;             // up to so many the largest block's registers; beyond, they stream
constexpr int kWarpsBlock = 128, kRowBlock = 256;
// Blocks on a multiprocessor at once: the compiler leaves registers for so many, and spills none.
constexpr int kFewBlocksAtOnce = 16, kWarpsBlocksAtOnce = 5, kRowBlocksAtOnce = 3;
constexpr int64_t kFewConcepts = 256;  // whose N_k every warp adds up for itself
constexpr int64_t kSegment = 1024;     // examples over which a warp sums the losses of a concept
constexpr int64_t kColumns = 32;       // concepts of a block that sums
constexpr int kSumBlock = 256;

// half has no room for p / B before a loss scale (csrc/concept_cross_entropy.h)
template <class scalar_t>
using grad_type = std::conditional_t<std::is_same_v<scalar_t, __half>, float, scalar_t>;

// CrossEntropyParams::workspace: N where there are many concepts; how many blocks have summed; sums of losses
// [segments, K + 1]. The last column is that of examples whose concept does not exist: NaN if there is one, for their
// losses are.
__device__ inline unsigned* blocks_done(const CrossEntropyParams& p) {
  return reinterpret_cast<unsigned*>(p.workspace + 1);
}
__device__ inline double* segment_sums(const CrossEntropyParams& p) { return p.workspace + 2; }

// N
__device__ inline double total_count(const CrossEntropyParams& p) {
  if (p.concepts > kFewConcepts) return p.workspace[0];
  return combine(p.concepts, 0.0, Sum{}, [&](int64_t k) { return load(p.concept_count, k); });
}

__global__ void __launch_bounds__(kMaxBlockSize) total_count_kernel(const CrossEntropyParams p) {
  double sum = 0.0;
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < p.concepts; k += blockDim.x) sum += load(p.concept_count, k);
  sum = BlockTeam::reduce(sum, Sum{});
  if (threadIdx.x == 0) p.workspace[0] = sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Rows

// Example i by its team: l_i and the row of the gradient.
template <class scalar_t, class Team, bool kSmooth, class Row>
__device__ void take_example(const CrossEntropyParams& p, double total, int64_t i, Row& row) {
  using acc_t = acc_type<scalar_t>;
  const int64_t y = p.target[i], k = p.concept_[i];
  const bool known = y >= 0 && y < p.classes && k >= 0 && k < p.concepts;
  const double count = known ? load(p.concept_count, k) : 0.0;
  const bool valid = count > 0.0;
  const acc_t nan = static_cast<acc_t>(NAN);
  const acc_t target = valid ? to_acc(static_cast<const scalar_t*>(p.logits)[i * p.classes + y]) : nan;
  // q_k / p_k and not q_k (N / N_k): q = q0 = N_k / N then gives exactly 1.
  const acc_t weight = valid ? static_cast<acc_t>(load(p.q, k) / (count / total)) : nan;
  const acc_t eps = kSmooth ? static_cast<acc_t>(p.label_smoothing) : 0;
  const acc_t share = kSmooth ? eps / static_cast<acc_t>(p.classes) : 0;

  // A NaN never wins the maximum, but z - max is NaN with it and so is everything after.
  const acc_t largest = Team::reduce(row.largest(), Larger{});
  acc_t loss = largest - target;
  if (kSmooth) loss = loss * (1 - eps) + share * Team::reduce(row.behind(largest), Sum{});
  const acc_t exp_sum = Team::reduce(row.exponentials(largest), Sum{});
  if (Team::rank() == 0) static_cast<acc_t*>(p.example_loss)[i] = loss + logarithm(exp_sum);
  if (!p.grad_logits) return;

  auto* grad = static_cast<grad_type<scalar_t>*>(p.grad_logits) + i * p.classes;
  const acc_t scale = weight / (exp_sum * static_cast<acc_t>(p.batch));
  const acc_t uniform = kSmooth ? share * exp_sum * scale : 0;
  row.write(grad, scale, uniform);
  if (valid) row.put(grad, y, (exponential(target - largest) - (1 - eps) * exp_sum) * scale - uniform);
}

__device__ inline void begin_rows(const CrossEntropyParams& p) {
  let_next_launch_begin();
  if (blockIdx.x == 0 && threadIdx.x == 0) *blocks_done(p) = 0;
}

template <class scalar_t, class Team, class Row, bool kSmooth, int kThreads, int kAtOnce>
__global__ void __launch_bounds__(kThreads, kAtOnce) wide_rows_kernel(const CrossEntropyParams p) {
  begin_rows(p);
  const int64_t i = Team::index();
  if (i >= p.batch) return;
  Row row(static_cast<const scalar_t*>(p.logits) + i * p.classes, p.classes);
  take_example<scalar_t, Team, kSmooth>(p, total_count(p), i, row);
}

template <class scalar_t, bool kSmooth>
__global__ void __launch_bounds__(kFewRows, kFewBlocksAtOnce) few_classes_kernel(const CrossEntropyParams p) {
  begin_rows(p);
  const int classes = static_cast<int>(p.classes);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kFewRows, left = p.batch - begin;
  const int64_t rows = left < kFewRows ? left : kFewRows;
  auto* tile = dynamic_shared<acc_type<scalar_t>>();
  const auto* logits = static_cast<const scalar_t*>(p.logits) + begin * classes;
  each_entry(rows, classes, [&](int entry, int place) { tile[place] = to_acc(logits[entry]); });
  const double total = total_count(p);
  __syncthreads();  // the tile is there
  if (threadIdx.x < rows) {
    TileRow<acc_type<scalar_t>> row(tile + threadIdx.x * pitch_of(classes), classes);
    take_example<scalar_t, LaneTeam<1>, kSmooth>(p, total, begin + threadIdx.x, row);
  }
  if (!p.grad_logits) return;
  __syncthreads();  // the gradient is there
  auto* grad = static_cast<grad_type<scalar_t>*>(p.grad_logits) + begin * classes;
  each_entry(rows, classes, [&](int entry, int place) { assign(grad[entry], tile[place]); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums

// concept_loss and loss from the sums of the segments, by one block.
template <class loss_t>
__device__ void add_segments(const CrossEntropyParams& p, double total, int64_t segments) {
  const int64_t columns = p.concepts + 1;
  double loss = 0.0;
  for (int64_t k = threadIdx.x; k < columns; k += blockDim.x) {
    double sum = 0.0;
#pragma unroll 16
    for (int64_t s = 0; s < segments; ++s) sum += segment_sums(p)[s * columns + k];
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

// A block takes kColumns concepts of a segment, a warp one at a time.
template <class loss_t>
__global__ void __launch_bounds__(kSumBlock) sum_losses_kernel(const CrossEntropyParams p, int64_t segments) {
  __shared__ int64_t column_of[kSegment];
  __shared__ loss_t loss_of[kSegment];
  __shared__ bool last;
  const int64_t columns = p.concepts + 1, groups = gridDim.x / segments, segment = blockIdx.x / groups;
  const int64_t begin = segment * kSegment, left = p.batch - begin, examples = left < kSegment ? left : kSegment;
  for (int64_t i = threadIdx.x; i < examples; i += kSumBlock) {
    const int64_t k = p.concept_[begin + i];
    column_of[i] = k >= 0 && k < p.concepts ? k : p.concepts;
  }
  const double total = total_count(p);
  wait_for_launch_before();
  for (int64_t i = threadIdx.x; i < examples; i += kSumBlock)
    loss_of[i] = static_cast<const loss_t*>(p.example_loss)[begin + i];
  __syncthreads();  // the segment is there
  const int64_t first = blockIdx.x % groups * kColumns, end = first + kColumns < columns ? first + kColumns : columns;
  for (int64_t k = first + threadIdx.x / kWarpSize; k < end; k += kSumBlock / kWarpSize) {
    const auto loss = [&](int64_t i) { return column_of[i] == k ? static_cast<double>(loss_of[i]) : 0.0; };
    const double sum = combine(examples, 0.0, Sum{}, loss);
    if (threadIdx.x % kWarpSize == 0) segment_sums(p)[segment * columns + k] = sum;
  }
  __threadfence();
  __syncthreads();  // all sums of the block are there
  if (threadIdx.x == 0) last = gridDim.x == 1 || atomicAdd(blocks_done(p), 1u) == gridDim.x - 1;
  __syncthreads();  // everybody knows
  if (!last) return;
  __threadfence();
  add_segments<loss_t>(p, total, segments);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

// An empty batch has sums, too.
static int64_t blocks_for(int64_t batch, int64_t examples) { return batch > 0 ? ceil_div(batch, examples) : 1; }

// kClasses: that the registers of the team hold, or 0. They hold a row of doubles badly, and few train in double.
template <class scalar_t, int kVec, bool kSmooth, class Team, int kClasses, int kThreads, int kAtOnce>
static void launch_teams(const CrossEntropyParams& p, CUstream_st* stream) {
  constexpr bool kHeld = kClasses > 0 && sizeof(scalar_t) < sizeof(double);
  using Row = std::conditional_t<kHeld, RegisterRow<scalar_t, kVec, Team, kClasses>, StreamedRow<scalar_t, kVec, Team>>;
  const int64_t grid = blocks_for(p.batch, kThreads / Team::kSize);
  launch_kernel<wide_rows_kernel<scalar_t, Team, Row, kSmooth, kThreads, kAtOnce>>({grid, kThreads}, stream, p);
}

template <class scalar_t, int kVec, bool kSmooth>
static void launch_wide_rows(const CrossEntropyParams& p, CUstream_st* stream) {
  using Widest = BlockOf<kMaxBlockSize>;
  constexpr int kHeldClasses = kVec > 1 ? kWideClasses : 0;  // one by one they would take too many registers
  if (p.classes <= kWarpClasses)
    launch_teams<scalar_t, kVec, kSmooth, LaneTeam<kWarpSize>, kWarpClasses, kWarpsBlock, kWarpsBlocksAtOnce>(p,
                                                                                                              stream);
  else if (p.classes <= kBlockClasses)
    launch_teams<scalar_t, kVec, kSmooth, BlockOf<kRowBlock>, kBlockClasses, kRowBlock, kRowBlocksAtOnce>(p, stream);
  else if (p.classes <= kHeldClasses)
    launch_teams<scalar_t, kVec, kSmooth, Widest, kHeldClasses, kMaxBlockSize, 1>(p, stream);
  else
    launch_teams<scalar_t, kVec, kSmooth, Widest, 0, kMaxBlockSize, 1>(p, stream);
}

template <class scalar_t, bool kSmooth>
static void launch_rows(const CrossEntropyParams& p, CUstream_st* stream) {
  constexpr int kVec = sizeof(scalar_t) < sizeof(double) ? kPackSize<scalar_t> : 1;
  if (p.classes <= kFewClasses) {
    const size_t tile = kFewRows * static_cast<size_t>(p.classes + 1) * sizeof(acc_type<scalar_t>);  // pitch_of
    launch_kernel<few_classes_kernel<scalar_t, kSmooth>>({blocks_for(p.batch, kFewRows), kFewRows, tile}, stream, p);
  } else if (p.classes % kVec == 0 && is_aligned(p.logits, kPackBytes) &&
             is_aligned(p.grad_logits, kVec * sizeof(grad_type<scalar_t>))) {
    launch_wide_rows<scalar_t, kVec, kSmooth>(p, stream);
  } else {
    launch_wide_rows<scalar_t, 1, kSmooth>(p, stream);
  }
}

int64_t cross_entropy_workspace(int64_t batch, int64_t concepts) {
  return 2 + blocks_for(batch, kSegment) * (concepts + 1);
}

void launch_concept_cross_entropy(Dtype dtype, const CrossEntropyParams& p, CUstream_st* stream) {
  if (p.concepts > kFewConcepts) launch_kernel<total_count_kernel>({1, kMaxBlockSize}, stream, p);
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    p.label_smoothing > 0.0 ? launch_rows<scalar_t, true>(p, stream) : launch_rows<scalar_t, false>(p, stream);
    const int64_t segments = blocks_for(p.batch, kSegment), grid = segments * ceil_div(p.concepts + 1, kColumns);
    LaunchShape sums{grid, kSumBlock};
    sums.follows = true;
    launch_kernel<sum_losses_kernel<acc_type<scalar_t>>>(sums, stream, p, segments);
  });
}

}  // namespace hrrl::cuda
