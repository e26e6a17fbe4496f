// out_i = x_i + tau g_i / ||g_i||: one pass over g for the norm, one over x and g for the step.
//
// - The squares are summed in double, as on the CPU and for the same reason: a float32 gradient keeps its direction
//   from 1e-45 to 3e38. Doubles themselves are summed in three ranges (WideSquares), which costs no second pass.
// - ||g|| = 0 and ||g|| not finite leave the example as it is, to the bit.
// - The length of a row chooses who works on it: a warp; a block, which reads g again from cache; or, beyond kChunk
//   elements, as many blocks as it has chunks, in two launches. Chunks depend on the length alone, never on the device.
#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"

namespace hrrl::cuda {

constexpr int kPerturbBlock = 256;
constexpr int64_t kWarpRow = 1024;  // elements up to which a warp takes a row
constexpr int64_t kChunk = 16384;   // elements up to which a block takes a row; then also those of a chunk
constexpr int kInFlight = 4;        // loads that a thread starts before it uses the first

// ---------------------------------------------------------------------------------------------------------------------
// ||g||^2 and the step that follows from it

struct Squares {
  double total;
  __device__ void add(float g) { total += static_cast<double>(g) * static_cast<double>(g); }
};
__device__ inline Squares operator+(Squares a, Squares b) { return {a.total + b.total}; }
__device__ inline Squares shuffle_xor(unsigned mask, Squares s, int offset) {
  return {shuffle_xor(mask, s.total, offset)};
}

// The squares of doubles, small and big entries scaled into range by powers of two (Blue, 1978; the constants of
// LAPACK's dnrm2). NaN fails both comparisons and shows in `medium`; infinity shows in `big`, where no finite entry
// overflows.
struct WideSquares {
  static constexpr double kSmall = 0x1p-511, kSmallScale = 0x1p537;
  static constexpr double kBig = 0x1p486, kBigScale = 0x1p-538;
  double small, medium, big;

  __device__ void add(double g) {
    const double magnitude = fabs(g);
    if (magnitude > kBig)
      big += (g * kBigScale) * (g * kBigScale);
    else if (magnitude < kSmall)
      small += (g * kSmallScale) * (g * kSmallScale);
    else
      medium += g * g;
  }
};
__device__ inline WideSquares operator+(WideSquares a, WideSquares b) {
  return {a.small + b.small, a.medium + b.medium, a.big + b.big};
}
__device__ inline WideSquares shuffle_xor(unsigned mask, WideSquares s, int offset) {
  return {shuffle_xor(mask, s.small, offset), shuffle_xor(mask, s.medium, offset), shuffle_xor(mask, s.big, offset)};
}

// The step of an example: its norm, whether it moves at all, and visit(run), which calls run(f) with the f that takes
// an element of x and one of g to one of out.

// Of float, half or bfloat16. tau / ||g|| may leave the range of float: such an example takes the loop in double, so
// all others have one without a choice inside.
struct FloatStep {
  using Total = Squares;
  double norm, factor;
  bool moves;

  __device__ FloatStep(Squares squares, double tau) : norm(sqrt(squares.total)), factor(tau / norm) {
    moves = norm > 0.0 && norm < HUGE_VAL && tau != 0.0;
  }
  template <class Run>
  __device__ void visit(Run run) const {
    if (fabs(factor) > 1e-30 && fabs(factor) < 1e30)
      run([f = static_cast<float>(factor)](float x, float g) { return x + g * f; });
    else
      run([f = factor](float x, float g) { return x + static_cast<float>(static_cast<double>(g) * f); });
  }
};

// Of double. ||g|| = root / scale with root in range: ||g|| may overflow while its direction is still good.
struct DoubleStep {
  using Total = WideSquares;
  double norm, scale, root, tau;
  bool moves;

  __device__ DoubleStep(WideSquares s, double tau) : scale(1.0), root(sqrt(s.medium)), tau(tau) {
    constexpr double kSmallMatters = 0x1p-60;  // above, the small squares are beyond the last bit of the sum
    if (s.big > 0.0) {
      scale = WideSquares::kBigScale;
      root = sqrt(s.big + (s.medium * scale) * scale);
    } else if (s.medium < kSmallMatters) {
      scale = WideSquares::kSmallScale;
      root = sqrt(s.small + (s.medium * scale) * scale);
    }
    const bool finite = s.medium + s.big < HUGE_VAL;
    norm = finite ? root / scale : s.medium + s.big;
    moves = finite && root > 0.0 && tau != 0.0;
  }
  template <class Run>
  __device__ void visit(Run run) const {
    run([s = *this](double x, double g) { return x + s.tau * ((g * s.scale) / s.root); });
  }
};

template <class scalar_t>
struct StepOf {
  using type = FloatStep;
  using norm_t = float;
};
template <>
struct StepOf<double> {
  using type = DoubleStep;
  using norm_t = double;
};
template <class scalar_t>
using Step = typename StepOf<scalar_t>::type;
template <class scalar_t>
using TotalOf = typename Step<scalar_t>::Total;

// ---------------------------------------------------------------------------------------------------------------------
// One team over `count` neighbours, kVec at a time; count is a multiple of kVec

template <int kVec, class Team, class scalar_t>
__device__ TotalOf<scalar_t> sum_squares(const scalar_t* g, int64_t count) {
  using Vec = Pack<scalar_t, kVec>;
  const auto* packs = reinterpret_cast<const Vec*>(g);
  const int64_t size = Team::size(), end = count / kVec;
  TotalOf<scalar_t> total{};
  for (int64_t i = Team::rank(); i < end; i += kInFlight * size) {
    Vec in[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      if (i + u * size < end) in[u] = packs[i + u * size];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      if (i + u * size < end)
        for (int e = 0; e < kVec; ++e) total.add(to_acc(in[u].value[e]));
  }
  return Team::reduce(total, Sum{});
}

template <int kVec, class Team, class scalar_t>
__device__ void copy(const scalar_t* x, scalar_t* out, int64_t count) {
  const auto* from = reinterpret_cast<const Pack<scalar_t, kVec>*>(x);
  auto* to = reinterpret_cast<Pack<scalar_t, kVec>*>(out);
  for (int64_t i = Team::rank(); i < count / kVec; i += Team::size()) to[i] = from[i];
}

template <int kVec, class Team, class scalar_t, class F>
__device__ void map(const scalar_t* x, const scalar_t* g, scalar_t* out, int64_t count, F f) {
  using Vec = Pack<scalar_t, kVec>;
  const auto *x_packs = reinterpret_cast<const Vec*>(x), *g_packs = reinterpret_cast<const Vec*>(g);
  auto* out_packs = reinterpret_cast<Vec*>(out);
  const int64_t size = Team::size(), end = count / kVec;
  for (int64_t i = Team::rank(); i < end; i += kInFlight * size) {
    Vec x_in[kInFlight], g_in[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      if (i + u * size < end) {
        x_in[u] = x_packs[i + u * size];
        g_in[u] = g_packs[i + u * size];
      }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      if (i + u * size < end) {
        for (int e = 0; e < kVec; ++e) assign(x_in[u].value[e], f(to_acc(x_in[u].value[e]), to_acc(g_in[u].value[e])));
        out_packs[i + u * size] = x_in[u];
      }
  }
}

template <int kVec, class Team, class scalar_t>
__device__ void take_step(const Step<scalar_t>& step, const scalar_t* x, const scalar_t* g, scalar_t* out,
                          int64_t count) {
  if (step.moves)
    step.visit([&](auto f) { map<kVec, Team>(x, g, out, count, f); });
  else
    copy<kVec, Team>(x, out, count);  // to the bit, NaNs included
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

// A team per example.
template <class scalar_t, int kVec, class Team>
__global__ void __launch_bounds__(kPerturbBlock) perturb_kernel(const PerturbParams p) {
  const int64_t row = Team::index();
  if (row >= p.batch) return;  // whole teams leave
  const int64_t offset = row * p.size;
  const auto* g = static_cast<const scalar_t*>(p.grad) + offset;
  const Step<scalar_t> step(sum_squares<kVec, Team>(g, p.size), tau_of(p, row));
  if (Team::rank() == 0) store_norm<scalar_t>(p, row, step.norm);
  take_step<kVec, Team>(step, static_cast<const scalar_t*>(p.x) + offset, g, static_cast<scalar_t*>(p.out) + offset,
                        p.size);
}

// A block per chunk: where it begins in the arrays, and how long it is.
struct ChunkOfRow {
  int64_t chunks, row, chunk, offset, count;

  __device__ explicit ChunkOfRow(int64_t size) {
    chunks = (size + kChunk - 1) / kChunk;
    row = blockIdx.x / chunks;
    chunk = blockIdx.x % chunks;
    offset = row * size + chunk * kChunk;
    count = chunk + 1 < chunks ? kChunk : size - chunk * kChunk;
  }
};

template <class scalar_t, int kVec>
__global__ void __launch_bounds__(kPerturbBlock) sum_chunks_kernel(const PerturbParams p) {
  const ChunkOfRow c(p.size);
  const auto total = sum_squares<kVec, BlockTeam>(static_cast<const scalar_t*>(p.grad) + c.offset, c.count);
  if (threadIdx.x == 0) static_cast<TotalOf<scalar_t>*>(p.workspace)[blockIdx.x] = total;
}

template <class scalar_t, int kVec>
__global__ void __launch_bounds__(kPerturbBlock) step_chunks_kernel(const PerturbParams p) {
  const ChunkOfRow c(p.size);
  const auto* totals = static_cast<const TotalOf<scalar_t>*>(p.workspace) + c.row * c.chunks;
  TotalOf<scalar_t> total{};
  for (int64_t i = threadIdx.x; i < c.chunks; i += blockDim.x) total = total + totals[i];
  const Step<scalar_t> step(BlockTeam::reduce(total, Sum{}), tau_of(p, c.row));
  if (c.chunk == 0 && threadIdx.x == 0) store_norm<scalar_t>(p, c.row, step.norm);
  take_step<kVec, BlockTeam>(step, static_cast<const scalar_t*>(p.x) + c.offset,
                             static_cast<const scalar_t*>(p.grad) + c.offset, static_cast<scalar_t*>(p.out) + c.offset,
                             c.count);
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

template <class scalar_t, int kVec>
static void launch_rows(const PerturbParams& p, CUstream_st* stream) {
  static_assert(kChunk % kVec == 0, "chunks must begin where packs do");
  if (p.size <= kWarpRow) {
    const int64_t grid = ceil_div(p.batch, kPerturbBlock / kWarpSize);
    launch_kernel(perturb_kernel<scalar_t, kVec, LaneTeam<kWarpSize>>, grid, kPerturbBlock, 0, stream, p);
  } else if (p.size <= kChunk) {
    launch_kernel(perturb_kernel<scalar_t, kVec, BlockTeam>, p.batch, kPerturbBlock, 0, stream, p);
  } else {
    const int64_t grid = p.batch * ceil_div(p.size, kChunk);
    launch_kernel(sum_chunks_kernel<scalar_t, kVec>, grid, kPerturbBlock, 0, stream, p);
    launch_kernel(step_chunks_kernel<scalar_t, kVec>, grid, kPerturbBlock, 0, stream, p);
  }
}

int64_t perturb_workspace(Dtype dtype, int64_t batch, int64_t size) {
  if (size <= kChunk) return 0;
  const size_t bytes = dtype == Dtype::kDouble ? sizeof(WideSquares) : sizeof(Squares);
  return batch * ceil_div(size, kChunk) * static_cast<int64_t>(bytes / sizeof(double));
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
