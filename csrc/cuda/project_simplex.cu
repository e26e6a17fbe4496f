// The projection onto the simplex, a block per row, and the step of q that ends in one.
//
// Newton's method for the threshold nu, as in csrc/math/simplex.h, where it is explained: same start, same steps, same
// shift by the maximum; the block forms the sums over a row. Everything is double inside.
//
// A thread only ever visits its own entries. So the entries can wait in shared memory without a barrier; rows too long
// for that are read again, from cache, in each of the 2 to 12 rounds.
#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"

namespace hrrl::cuda {

constexpr int64_t kCachedEntries = 4096;  // 32 KB of shared memory
constexpr int64_t kMaxGrid = 65536;       // blocks beyond take several rows each

// ---------------------------------------------------------------------------------------------------------------------
// Where v comes from: row(r)(j) is v_rj

template <class scalar_t>
struct GivenRows {
  using out_t = scalar_t;
  const scalar_t* v;
  scalar_t* out;
  int64_t rows, size;
  double radius;

  struct Row {
    const scalar_t* v;
    __device__ double operator()(int64_t j) const { return static_cast<double>(to_acc(v[j])); }
  };
  __device__ Row row(int64_t r) const { return {v + r * size}; }
};

// The distribution after the ascent of Eq. 6, before it is projected.
struct AscendedDistribution {
  using out_t = double;
  UpdateDistributionParams p;
  double* out;
  int64_t rows, size;
  double radius;

  struct Row {
    UpdateDistributionParams p;
    double step;
    __device__ double operator()(int64_t k) const {
      return p.q[k] + step * (p.concept_loss[k] - p.lam * (p.q[k] - p.q0[k]));
    }
  };
  __device__ Row row(int64_t) const { return {p, p.eta_scale ? p.eta * *p.eta_scale : p.eta}; }
};

// ---------------------------------------------------------------------------------------------------------------------
// Kernel

// The entries above nu: their sum and their number
struct Support {
  double sum;
  int64_t count;
};
__device__ inline Support operator+(Support a, Support b) { return {a.sum + b.sum, a.count + b.count}; }
__device__ inline Support shuffle_xor(unsigned mask, Support s, int offset) {
  return {shuffle_xor(mask, s.sum, offset), shuffle_xor(mask, static_cast<long long>(s.count), offset)};
}

template <class Rows, bool kCached>
__global__ void __launch_bounds__(kMaxBlockSize) project_simplex_kernel(const Rows rows) {
  double* cache = dynamic_shared<double>();  // [K] if kCached, otherwise nothing
  const int64_t size = rows.size;
  const double radius = rows.radius;
  for (int64_t r = blockIdx.x; r < rows.rows; r += gridDim.x) {
    const auto source = rows.row(r);
    double max = -HUGE_VAL;
    bool bad = false;
    for (int64_t j = threadIdx.x; j < size; j += blockDim.x) {
      const double value = source(j);
      if (kCached) cache[j] = value;
      max = Max{}(max, value);
      bad |= !(value < HUGE_VAL);  // NaN and +inf
    }
    max = BlockTeam::reduce(max, Max{});
    bad = __syncthreads_or(bad) || max == -HUGE_VAL;
    const auto shifted = [&](int64_t j) { return (kCached ? cache[j] : source(j)) - max; };

    double nu = bad ? NAN : -radius;  // at or below the root: the largest entry alone reaches the radius
    for (int64_t last_count = size + 1; !bad;) {
      Support support{0.0, 0};
      for (int64_t j = threadIdx.x; j < size; j += blockDim.x) {
        const double value = shifted(j);
        if (value > nu) support = support + Support{value, 1};
      }
      support = BlockTeam::reduce(support, Sum{});
      // The support only shrinks. Where rounding would let it grow again the root is reached, too: going on could
      // alternate for ever.
      if (support.count >= last_count || support.count == 0) break;
      last_count = support.count;
      nu = (support.sum - radius) / static_cast<double>(last_count);
    }

    auto* out = rows.out + r * size;
    for (int64_t j = threadIdx.x; j < size; j += blockDim.x) {
      const double p = shifted(j) - nu;
      using acc_t = acc_type<typename Rows::out_t>;
      assign(out[j], static_cast<acc_t>(p < 0.0 ? 0.0 : p));  // keeps NaN
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Launchers

template <class Rows>
static void launch_rows(const Rows& rows, CUstream_st* stream) {
  constexpr int64_t kEntriesPerThread = 4;
  int block = kWarpSize;
  while (block < kMaxBlockSize && block * kEntriesPerThread < rows.size) block *= 2;
  const int64_t grid = rows.rows < kMaxGrid ? rows.rows : kMaxGrid;
  if (rows.size <= kCachedEntries)
    launch_kernel(project_simplex_kernel<Rows, true>, grid, block, rows.size * sizeof(double), stream, rows);
  else
    launch_kernel(project_simplex_kernel<Rows, false>, grid, block, 0, stream, rows);
}

void launch_project_simplex(Dtype dtype, const void* v, void* out, int64_t rows, int64_t size, double radius,
                            CUstream_st* stream) {
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    launch_rows(GivenRows<scalar_t>{static_cast<const scalar_t*>(v), static_cast<scalar_t*>(out), rows, size, radius},
                stream);
  });
}

void launch_update_distribution(const UpdateDistributionParams& p, CUstream_st* stream) {
  launch_rows(AscendedDistribution{p, p.out, 1, p.size, 1.0}, stream);
}

}  // namespace hrrl::cuda
