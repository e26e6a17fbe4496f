// info_nce: attention of B queries over a queue of K rows, which are keys and values, and the loss that comes with it.
//
// - A block has 64 queries and a range of the queue. Of 64 rows after another, in shared memory for both products, it
//   makes the logits, keeps e^(logit - max), and adds up those times the rows in registers: a thread has 8 queries by 4
//   of the rows, then by 8 of the columns. Where the maximum rises, what was added up fades.
// - Rows are as wide as there is room, 128 columns of float32. Wider ones are parted: the logits are summed piece by
//   piece, by each of the blocks that have the sums of a piece.
// - There are up to 128 ranges, whatever the device and the batch: a query's bits depend on neither. A second launch
//   merges them, and adds the positive.
#include <cmath>
#include <limits>

#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"

namespace hrrl::cuda {

constexpr int64_t kQueueRanges = 128;
constexpr int kMergeBlock = 128;
static_assert(kQueueRanges <= kMergeBlock, "a thread for every range");

constexpr int kAttendTile = 64;                           // queries of a block, and rows of the queue at a time
constexpr int kAttendQueries = 8;                         // of a thread
constexpr int kAttendAcross = 16;                         // threads that have the same queries
constexpr int kAttendRows = kAttendTile / kAttendAcross;  // of the queue, that a thread has the logits of
constexpr int kAttendBlock = kAttendTile / kAttendQueries * kAttendAcross;

// Columns that a block has in shared memory, and has the sums of, in pieces of a pack for each thread across
template <class acc_t>
constexpr int kAttendColumns = sizeof(acc_t) == 4 ? 128 : 32;
template <class acc_t>
constexpr int kAttendPieces = kAttendColumns<acc_t> / (kAttendAcross * kPackSize<acc_t>);
template <class acc_t>
constexpr acc_t kLowest = std::numeric_limits<acc_t>::lowest();

static int64_t ranges_of(int64_t count) {
  const int64_t tiles = ceil_div(count, kAttendTile);
  return tiles < kQueueRanges ? tiles : kQueueRanges;
}

// How the work is parted, and what the ranges leave behind: the highest logit, the sum of e^(logit - highest), and that
// of the rows so weighted.
template <class acc_t>
struct QueueParts {
  int64_t queries, ranges;   // tiles of the queries, and of the queue
  int64_t slices, summed;    // of the columns, and how many have sums
  acc_t *high, *sum, *rows;  // [ranges, B], [ranges, B], [ranges, B, D]
  QueueParts(const InfoNceParams& p)
      : queries(ceil_div(p.batch, kAttendTile)),
        ranges(ranges_of(p.count)),
        slices(p.size > 0 ? ceil_div(p.size, kAttendColumns<acc_t>) : 1),
        summed(p.grad_query == nullptr ? 1 : slices),
        high(static_cast<acc_t*>(p.workspace)),
        sum(high + ranges * p.batch),
        rows(sum + ranges * p.batch) {}
};

// Packs of neighbouring rows lie in other banks.
template <class acc_t>
struct alignas(kPackBytes) AttendRows {
  acc_t at[kAttendTile][kAttendColumns<acc_t> + kPackSize<acc_t>];

  // Rows from `first` on and columns from `column` on; 0 where there are none
  __device__ void load(const acc_t* from, int64_t first, int64_t count, int64_t column, int64_t size) {
    constexpr int kColumns = kAttendColumns<acc_t>, kAtOnce = kAttendBlock / kColumns;
    const int own = static_cast<int>(threadIdx.x) % kColumns, begin = static_cast<int>(threadIdx.x) / kColumns;
    int rows = static_cast<int>(count - first < kAttendTile ? count - first : kAttendTile) - begin;
    if (column + own >= size) rows = 0;
    from += (first + begin) * size + column + own;
#pragma unroll 16
    for (int row = 0; row < kAttendTile; row += kAtOnce) {
      at[begin + row][own] = row < rows ? *from : acc_t{};
      from += kAtOnce * size;
    }
  }
};

template <class acc_t>
struct AttendShared {
  AttendRows<acc_t> query, queue;
  alignas(kPackBytes) acc_t weight[kAttendTile][kAttendTile + kPackSize<acc_t>];  // of a row of the queue, by query
  acc_t high[kAttendTile];  // the highest logit of a query until now
};

// The threads that have the same queries
using Across = LaneTeam<kAttendAcross>;
__device__ inline int attend_query() { return static_cast<int>(threadIdx.x) / kAttendAcross * kAttendQueries; }

// logit[i][j] += the product of query attend_query() + i and row j * kAttendAcross + Across::rank(), over `width`
// columns
template <class acc_t>
__device__ void add_logits(const AttendShared<acc_t>& shared, int width, acc_t (&logit)[kAttendQueries][kAttendRows]) {
  constexpr int kPack = kPackSize<acc_t>;
#pragma unroll 2
  for (int d = 0; d < width; d += kPack) {
    acc_t query[kAttendQueries][kPack];
#pragma unroll
    for (int i = 0; i < kAttendQueries; ++i) read_packs(&shared.query.at[attend_query() + i][d], query[i]);
#pragma unroll
    for (int j = 0; j < kAttendRows; ++j) {
      acc_t row[kPack];
      read_packs(&shared.queue.at[j * kAttendAcross + Across::rank()][d], row);
#pragma unroll
      for (int i = 0; i < kAttendQueries; ++i)
#pragma unroll
        for (int m = 0; m < kPack; ++m) logit[i][j] += query[i][m] * row[m];
    }
  }
}

// A thread's sums: of its queries, and a pack of columns in each piece.
template <class acc_t>
using RowSums = acc_t[kAttendPieces<acc_t>][kAttendQueries][kPackSize<acc_t>];

template <class acc_t>
__device__ void add_rows(const AttendShared<acc_t>& shared, int width, RowSums<acc_t>& sums) {
  constexpr int kPack = kPackSize<acc_t>;
#pragma unroll 4
  for (int j = 0; j < kAttendTile; ++j) {
    acc_t weight[kAttendQueries];
    read_packs(&shared.weight[j][attend_query()], weight);
#pragma unroll
    for (int piece = 0; piece < kAttendPieces<acc_t>; ++piece) {
      if (piece * kAttendAcross * kPack >= width) break;
      acc_t entry[kPack];
      read_packs(&shared.queue.at[j][(piece * kAttendAcross + Across::rank()) * kPack], entry);
#pragma unroll
      for (int i = 0; i < kAttendQueries; ++i)
#pragma unroll
        for (int m = 0; m < kPack; ++m) sums[piece][i][m] += weight[i] * entry[m];
    }
  }
}

template <class acc_t>
__global__ void __launch_bounds__(kAttendBlock, 2) attend_kernel(const InfoNceParams a, const QueueParts<acc_t> parts) {
  constexpr int kColumns = kAttendColumns<acc_t>;
  auto& shared = *dynamic_shared<AttendShared<acc_t>>();
  const auto *query = static_cast<const acc_t*>(a.query), *queue = static_cast<const acc_t*>(a.queue);
  const int64_t b = blockIdx.x % parts.queries * kAttendTile, part = blockIdx.x / parts.queries;
  const int64_t range = part % parts.ranges, slice = part / parts.ranges, first_column = slice * kColumns;
  const int64_t tiles = (a.count + kAttendTile - 1) / kAttendTile, end = tiles * (range + 1) / parts.ranges;
  const acc_t per_temperature = static_cast<acc_t>(1 / a.temperature);
  const auto width_from = [&](int64_t column) {
    return static_cast<int>(a.size - column < kColumns ? a.size - column : kColumns);
  };

  acc_t sum[kAttendQueries] = {};
  RowSums<acc_t> rows = {};
  if (threadIdx.x < kAttendTile) shared.high[threadIdx.x] = kLowest<acc_t>;
  if (parts.slices == 1) shared.query.load(query, b, a.batch, 0, a.size);
  for (int64_t tile = tiles * range / parts.ranges; tile < end; ++tile) {
    const int64_t k = tile * kAttendTile;
    acc_t logit[kAttendQueries][kAttendRows] = {};
    for (int64_t column = 0; column < parts.slices * kColumns; column += kColumns) {
      __syncthreads();  // they are free again
      if (parts.slices > 1) shared.query.load(query, b, a.batch, column, a.size);
      shared.queue.load(queue, k, a.count, column, a.size);
      __syncthreads();  // they are there
      add_logits(shared, width_from(column), logit);
    }
#pragma unroll
    for (int i = 0; i < kAttendQueries; ++i) {
      acc_t& kept = shared.high[attend_query() + i];
      const acc_t high = kept;
      acc_t higher = high;  // a NaN passes it by, and spoils the sums
#pragma unroll
      for (int j = 0; j < kAttendRows; ++j) {
        const bool there = k + j * kAttendAcross + Across::rank() < a.count;
        logit[i][j] = there ? logit[i][j] * per_temperature : static_cast<acc_t>(-HUGE_VAL);
        higher = logit[i][j] > higher ? logit[i][j] : higher;
      }
      higher = Across::reduce(higher, Max{});
      if (Across::rank() == 0) kept = higher;  // which all have read; they read it again after a barrier
      const acc_t fade = exp(high - higher);
      sum[i] *= fade;
#pragma unroll
      for (auto& piece : rows)
        for (acc_t& entry : piece[i]) entry *= fade;
#pragma unroll
      for (int j = 0; j < kAttendRows; ++j) {
        const acc_t weight = exp(logit[i][j] - higher);
        sum[i] += weight;
        shared.weight[j * kAttendAcross + Across::rank()][attend_query() + i] = weight;
      }
    }
    if (a.grad_query == nullptr) continue;
    __syncthreads();  // the weights are there
    if (slice + 1 < parts.slices) {
      shared.queue.load(queue, k, a.count, first_column, a.size);
      __syncthreads();
    }
    add_rows(shared, width_from(first_column), rows);
  }

  let_next_launch_begin();
#pragma unroll
  for (int i = 0; i < kAttendQueries; ++i) {
    const int64_t at = b + attend_query() + i;
    const acc_t total = Across::reduce(sum[i], Sum{});
    if (at >= a.batch) continue;
    if (slice == 0 && Across::rank() == 0) {
      parts.high[range * a.batch + at] = shared.high[attend_query() + i];
      parts.sum[range * a.batch + at] = total;
    }
    if (a.grad_query == nullptr) continue;
#pragma unroll
    for (int piece = 0; piece < kAttendPieces<acc_t>; ++piece)
#pragma unroll
      for (int m = 0; m < kPackSize<acc_t>; ++m) {
        const int64_t d = first_column + (piece * kAttendAcross + Across::rank()) * kPackSize<acc_t> + m;
        if (d < a.size) parts.rows[(range * a.batch + at) * a.size + d] = rows[piece][i][m];
      }
  }
}

// A block for every query.
template <class acc_t>
__global__ void __launch_bounds__(kMergeBlock)
    merge_ranges_kernel(const InfoNceParams a, const QueueParts<acc_t> parts) {
  using Team = BlockOf<kMergeBlock>;
  __shared__ acc_t fade[kQueueRanges];
  const int64_t b = blockIdx.x;
  const auto *query = static_cast<const acc_t*>(a.query) + b * a.size,
             *key = static_cast<const acc_t*>(a.key) + b * a.size;
  acc_t positive = 0;
  for (int64_t d = threadIdx.x; d < a.size; d += kMergeBlock) positive += query[d] * key[d];
  positive = Team::reduce(positive, Sum{}) / static_cast<acc_t>(a.temperature);
  wait_for_launch_before();

  const int64_t place = threadIdx.x * a.batch + b;
  const bool mine = threadIdx.x < parts.ranges;
  const acc_t own = mine ? parts.high[place] : kLowest<acc_t>;
  const acc_t high = Team::reduce(own, Max{}), share = exp(own - high);
  if (mine) fade[threadIdx.x] = share;
  const acc_t sum = Team::reduce(mine ? share * parts.sum[place] : 0, Sum{});  // with barriers: all of fade is there
  const acc_t negatives = high + log(sum);
  const acc_t above = positive > negatives ? positive : negatives, below = positive > negatives ? negatives : positive;
  const acc_t total = above + log1p(exp(below - above));
  if (threadIdx.x == 0) static_cast<acc_t*>(a.loss)[b] = total - positive;
  if (a.grad_query == nullptr) return;
  const acc_t of_rows = exp(high - total), of_key = expm1(positive - total);
  for (int64_t d = threadIdx.x; d < a.size; d += kMergeBlock) {
    acc_t rows = 0;
    for (int64_t range = 0; range < parts.ranges; ++range)
      rows += fade[range] * parts.rows[(range * a.batch + b) * a.size + d];
    static_cast<acc_t*>(a.grad_query)[b * a.size + d] =
        (of_rows * rows + of_key * key[d]) / static_cast<acc_t>(a.temperature);
  }
}

int64_t info_nce_workspace(int64_t batch, int64_t count, int64_t size, bool with_grad) {
  return ranges_of(count) * batch * (2 + (with_grad ? size : 0));
}

template <class acc_t>
static void launch_as(const InfoNceParams& p, CUstream_st* stream) {
  const QueueParts<acc_t> parts(p);
  const int64_t blocks = parts.queries * parts.ranges * parts.summed;
  if (blocks > 0)
    launch_kernel<attend_kernel<acc_t>>({blocks, kAttendBlock, sizeof(AttendShared<acc_t>)}, stream, p, parts);
  LaunchShape merge{p.batch, kMergeBlock};
  merge.follows = blocks > 0;
  launch_kernel<merge_ranges_kernel<acc_t>>(merge, stream, p, parts);
}

void launch_info_nce(Dtype dtype, const InfoNceParams& p, CUstream_st* stream) {
  dtype == Dtype::kDouble ? launch_as<double>(p, stream) : launch_as<float>(p, stream);
}

}  // namespace hrrl::cuda
