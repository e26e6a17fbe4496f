// The concept-weighted cross-entropy, its gradient in the same visit, and its sums per concept.
//
//   l_i = log sum_j exp(z_ij) - (1 - eps) z_iy - eps mean_j z_ij            eps: label smoothing
//   d loss / d z_ij = w_i / B (softmax(z_i)_j - (1 - eps) [j = y] - eps / C)
//   w_i = q_k / p_k,  p_k = N_k / N,  k = concept_i
//   concept_loss_k = 1/B sum_{i in k} l_i / p_k,  loss = sum_k q_k concept_loss_k
//
// Three launches: N; the rows; the sums, where the block that finishes last adds up the loss. q is known before the
// loss, so the gradient leaves with the forward pass. The sums are formed in double and in a fixed order, without
// atomics on numbers: equal inputs give equal bits.
#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"

namespace hrrl::cuda {

constexpr int kTotalBlock = 256;
constexpr int kRowBlock = 128;                  // for rows shared by lanes of a warp
constexpr int kFewClasses = 64, kFewLanes = 8;  // up to so many classes so many lanes
constexpr int kWarpClasses = 1024;              // up to so many a warp; a block beyond
constexpr int kSumBlock = 256, kManyBlock = 128;
constexpr int kManyConcepts = 1024, kConceptsPerBlock = 32;

// In CrossEntropyParams::workspace
struct CrossEntropyWorkspace {
  double total;           // N
  unsigned int finished;  // blocks of the last kernel that have written their concepts
};
static_assert(sizeof(CrossEntropyWorkspace) <= kCrossEntropyWorkspace * sizeof(double), "workspace too small");

__device__ inline CrossEntropyWorkspace* workspace_of(const CrossEntropyParams& p) {
  return static_cast<CrossEntropyWorkspace*>(p.workspace);
}

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

// ---------------------------------------------------------------------------------------------------------------------
// How a team visits a row: each(f) calls f(j, z_j), map(out, f) stores out_j = f(j, z_j), for every class j once.
// `classes` is a multiple of kVec, and the rows are aligned for packs of kVec.

// Kept in the registers of the team: read from memory once.
template <class scalar_t, int kVec, class Team, int kMaxClasses>
struct RegisterRow {
  static constexpr int kPacks = kMaxClasses / Team::kSize / kVec;
  static_assert(kPacks * Team::kSize * kVec == kMaxClasses, "the packs of a team must cover a row exactly");
  Pack<scalar_t, kVec> packs[kPacks];
  int classes;

  __device__ static int first(int pack) { return (Team::rank() + pack * Team::kSize) * kVec; }

  __device__ RegisterRow(const scalar_t* z, int64_t classes) : classes(static_cast<int>(classes)) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      if (first(i) < this->classes) packs[i] = *reinterpret_cast<const Pack<scalar_t, kVec>*>(z + first(i));
  }
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      if (first(i) < classes) {
#pragma unroll
        for (int e = 0; e < kVec; ++e) f(first(i) + e, to_acc(packs[i].value[e]));
      }
  }
  template <class out_t, class F>
  __device__ void map(out_t* out, F f) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      if (first(i) < classes) {
        Pack<out_t, kVec> result;
#pragma unroll
        for (int e = 0; e < kVec; ++e) assign(result.value[e], f(first(i) + e, to_acc(packs[i].value[e])));
        *reinterpret_cast<Pack<out_t, kVec>*>(out + first(i)) = result;
      }
  }
};

// Read from memory, that is from cache, at every visit.
template <class scalar_t, int kVec, class Team>
struct StreamedRow {
  const scalar_t* z;
  int64_t classes;

  __device__ StreamedRow(const scalar_t* z, int64_t classes) : z(z), classes(classes) {}

  template <class F>
  __device__ void each(F f) const {
    for (int64_t j = Team::rank() * kVec; j < classes; j += Team::size() * kVec) {
      const auto pack = *reinterpret_cast<const Pack<scalar_t, kVec>*>(z + j);
#pragma unroll
      for (int e = 0; e < kVec; ++e) f(j + e, to_acc(pack.value[e]));
    }
  }
  template <class out_t, class F>
  __device__ void map(out_t* out, F f) const {
    for (int64_t j = Team::rank() * kVec; j < classes; j += Team::size() * kVec) {
      const auto pack = *reinterpret_cast<const Pack<scalar_t, kVec>*>(z + j);
      Pack<out_t, kVec> result;
#pragma unroll
      for (int e = 0; e < kVec; ++e) assign(result.value[e], f(j + e, to_acc(pack.value[e])));
      *reinterpret_cast<Pack<out_t, kVec>*>(out + j) = result;
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Kernels

// N, by one block; and the counter of the last kernel starts at 0.
__global__ void __launch_bounds__(kTotalBlock) total_count_kernel(const CrossEntropyParams p) {
  double total = 0.0;
  for (int64_t k = threadIdx.x; k < p.concepts; k += blockDim.x) total += p.concept_count[k];
  total = BlockTeam::reduce(total, Sum{});
  if (threadIdx.x == 0) {
    workspace_of(p)->total = total;
    workspace_of(p)->finished = 0;
  }
}

// A team per example: l_i and the row of the gradient. kBlock is the bound of the block size.
template <class scalar_t, class Team, class Row, int kBlock>
__global__ void __launch_bounds__(kBlock) cross_entropy_kernel(const CrossEntropyParams p) {
  using acc_t = acc_type<scalar_t>;
  using grad_t = grad_type<scalar_t>;
  const int64_t i = Team::index();
  if (i >= p.batch) return;  // whole teams leave
  const int64_t y = p.target[i], k = p.concept_[i];
  const bool valid = y >= 0 && y < p.classes && k >= 0 && k < p.concepts && p.concept_count[k] > 0.0;
  const double eps = p.label_smoothing, classes = static_cast<double>(p.classes);
  const scalar_t* z = static_cast<const scalar_t*>(p.logits) + i * p.classes;
  const Row row(z, p.classes);

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

  const acc_t shifted_target = valid ? to_acc(z[y]) - largest : static_cast<acc_t>(NAN);
  if (Team::rank() == 0) {
    double loss = log(exp_sum) - (1.0 - eps) * static_cast<double>(shifted_target);
    if (eps > 0.0) loss -= eps * shifted_sum / classes;
    static_cast<acc_t*>(p.example_loss)[i] = static_cast<acc_t>(loss);
  }
  if (!p.grad_logits) return;

  // q_k / p_k and not q_k (N / N_k): q = q0 = N_k / N then gives exactly 1.
  const double weight =
      valid ? p.q[k] / (p.concept_count[k] / workspace_of(p)->total) / static_cast<double>(p.batch) : NAN;
  const acc_t scale = static_cast<acc_t>(weight / exp_sum);
  const acc_t uniform = static_cast<acc_t>(weight * eps / classes);
  const double p_target = static_cast<double>(exponential(shifted_target)) / exp_sum;
  const acc_t at_target = static_cast<acc_t>(weight * (p_target - (1.0 - eps) - eps / classes));
  row.map(static_cast<grad_t*>(p.grad_logits) + i * p.classes,
          [&](int64_t j, acc_t z_j) { return j == y ? at_target : exponential(z_j - largest) * scale - uniform; });
}

// The loss, by the block that finishes last. Other blocks wrote concept_loss, so it is read past the first-level cache.
template <class loss_t>
__device__ void store_loss(const CrossEntropyParams& p, bool bad_concept) {
  double loss = 0.0;
  for (int64_t k = threadIdx.x; k < p.concepts; k += blockDim.x) {
    const double concept_loss = __ldcg(p.concept_loss + k);
    if (concept_loss != 0.0) loss += p.q[k] * concept_loss;  // 0: absent, whatever q_k is
  }
  loss = BlockTeam::reduce(loss, Sum{});
  if (threadIdx.x == 0) *static_cast<loss_t*>(p.loss) = static_cast<loss_t>(bad_concept ? NAN : loss);
}

// kConcepts neighbouring concepts per block: every thread adds up its share of the batch, concept by concept, in a
// column of its own, and a warp per concept then adds the columns. With kConcepts > 1 the batch is read less often.
template <class loss_t, int kConcepts, int kBlock>
__global__ void __launch_bounds__(kBlock) concept_loss_kernel(const CrossEntropyParams p) {
  __shared__ double column[kConcepts][kBlock];
  __shared__ bool last;
  const auto* example_loss = static_cast<const loss_t*>(p.example_loss);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kConcepts;
  const int thread = static_cast<int>(threadIdx.x);

  for (int c = 0; c < kConcepts; ++c) column[c][thread] = 0.0;
  bool bad_concept = false;
  for (int64_t i = thread; i < p.batch; i += kBlock) {
    const int64_t k = p.concept_[i];
    bad_concept |= k < 0 || k >= p.concepts;
    if (k >= first && k < first + kConcepts) column[k - first][thread] += static_cast<double>(example_loss[i]);
  }
  bad_concept = __syncthreads_or(bad_concept);  // also: the columns are complete before warps add them up

  const int lane = thread % kWarpSize;
  for (int c = thread / kWarpSize; c < kConcepts; c += kBlock / kWarpSize) {
    double sum = 0.0;
    for (int t = lane; t < kBlock; t += kWarpSize) sum += column[c][t];
    sum = LaneTeam<kWarpSize>::reduce(sum, Sum{});
    const int64_t k = first + c;
    if (lane == 0 && k < p.concepts) {
      const double expected = p.concept_count[k] / workspace_of(p)->total * static_cast<double>(p.batch);
      p.concept_loss[k] = sum == 0.0 ? 0.0 : sum / expected;  // 0: absent, whatever N_k is
    }
  }

  __threadfence();  // concept_loss is visible to all blocks ...
  __syncthreads();  // ... from every warp, before this block counts as finished
  if (thread == 0) last = atomicAdd(&workspace_of(p)->finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  store_loss<loss_t>(p, bad_concept);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

template <class scalar_t, int kVec>
static void launch_rows(const CrossEntropyParams& p, CUstream_st* stream) {
  using Few = LaneTeam<kFewLanes>;
  using Warp = LaneTeam<kWarpSize>;
  // Registers hold a row of doubles badly, and few train in double.
  constexpr bool kInRegisters = sizeof(scalar_t) < sizeof(double);
  using FewRow =
      std::conditional_t<kInRegisters, RegisterRow<scalar_t, 1, Few, kFewClasses>, StreamedRow<scalar_t, 1, Few>>;
  using WarpRow = std::conditional_t<kInRegisters, RegisterRow<scalar_t, kVec, Warp, kWarpClasses>,
                                     StreamedRow<scalar_t, kVec, Warp>>;
  using BlockRow = StreamedRow<scalar_t, kVec, BlockTeam>;

  if (p.classes <= kFewClasses) {
    const int64_t grid = ceil_div(p.batch, kRowBlock / kFewLanes);
    launch_kernel(cross_entropy_kernel<scalar_t, Few, FewRow, kRowBlock>, grid, kRowBlock, 0, stream, p);
  } else if (p.classes <= kWarpClasses) {
    const int64_t grid = ceil_div(p.batch, kRowBlock / kWarpSize);
    launch_kernel(cross_entropy_kernel<scalar_t, Warp, WarpRow, kRowBlock>, grid, kRowBlock, 0, stream, p);
  } else {
    const int block = p.classes <= 8192 ? 256 : kMaxBlockSize;
    launch_kernel(cross_entropy_kernel<scalar_t, BlockTeam, BlockRow, kMaxBlockSize>, p.batch, block, 0, stream, p);
  }
}

template <class loss_t>
static void launch_sums(const CrossEntropyParams& p, CUstream_st* stream) {
  if (p.concepts <= kManyConcepts)
    launch_kernel(concept_loss_kernel<loss_t, 1, kSumBlock>, p.concepts, kSumBlock, 0, stream, p);
  else
    launch_kernel(concept_loss_kernel<loss_t, kConceptsPerBlock, kManyBlock>, ceil_div(p.concepts, kConceptsPerBlock),
                  kManyBlock, 0, stream, p);
}

void launch_concept_cross_entropy(Dtype dtype, const CrossEntropyParams& p, CUstream_st* stream) {
  launch_kernel(total_count_kernel, 1, kTotalBlock, 0, stream, p);
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVec = kPackSize<scalar_t>;
    if (p.batch > 0) {
      const bool packs = p.classes % kVec == 0 && is_aligned(p.logits, kPackBytes) &&
                         is_aligned(p.grad_logits, kVec * sizeof(grad_type<scalar_t>));
      packs ? launch_rows<scalar_t, kVec>(p, stream) : launch_rows<scalar_t, 1>(p, stream);
    }
    launch_sums<acc_type<scalar_t>>(p, stream);
  });
}

}  // namespace hrrl::cuda
