// Directions that are stored in the coordinates of their images, a block for each example.
//
// - perturb_stored: the norm of what the view shows, then x, a value and out, in the order in which x lies in memory.
// The
//   row is read twice, the second time from cache: it has a byte, or a bit, where x has four.
// - store_directions: z = A^T g is never written down. A thread that needs a value finds the pixels of its block in the
//   view and adds them up, three times: for the largest, for the norm of z / largest, whose squares stay in range, and
//   for the codes. A thread writes the bytes that it has read, so rows change in place; of signs it takes all 8 of a
//   byte.
//
// Squares of bytes are whole numbers and their sums, in double, exact. The others are added up in the fixed order of a
// butterfly.
#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"

namespace hrrl::cuda {

constexpr int kStoredBlock = 512;

// Line y of a view shows line top + y of its image, and column u before a flip column left + u.
struct Seen {
  int top, left;
  bool flip;

  __device__ Seen(const StoredImages& of, const int64_t* view)
      : top(offset(view[0], of.height, of.padding)), left(offset(view[1], of.width, of.padding)), flip(view[2] > 0) {}

  // A view that lies further out shows no more of the image, and no sum of it overflows.
  __device__ static int offset(int64_t at, int64_t size, int64_t padding) {
    const int64_t from = at < padding - size ? -size : at > padding + size ? size : at - padding;
    return static_cast<int>(from);
  }
};

// What is needed of StoredImages for every pixel, in ints: an image has fewer than 2^31 values.
struct Sides {
  int channels, height, width, rows, columns, resolution;
  bool signs;

  __device__ explicit Sides(const StoredImages& of)
      : channels(static_cast<int>(of.channels)),
        height(static_cast<int>(of.height)),
        width(static_cast<int>(of.width)),
        rows(static_cast<int>(of.rows)),
        columns(static_cast<int>(of.columns)),
        resolution(static_cast<int>(of.resolution)),
        signs(of.signs) {}
};

__device__ inline int sign_of(const uint8_t* bits, int p) { return ((bits[p >> 3] >> (p & 7)) & 1) ? 1 : -1; }

// ---------------------------------------------------------------------------------------------------------------------
// perturb_stored

// In units of the row's; 0 outside of the image.
__device__ inline int value_at(const Sides& of, const Seen& s, const uint8_t* row, int channel, int y, int column) {
  const int line = s.top + y, at = s.left + (s.flip ? of.width - 1 - column : column);
  if (line < 0 || line >= of.height || at < 0 || at >= of.width) return 0;
  const int p = (channel * of.rows + line / of.resolution) * of.columns + at / of.resolution;
  return of.signs ? sign_of(row, p) : static_cast<int>(reinterpret_cast<const int8_t*>(row)[p]);
}

struct Pixel {
  int channel, y, column;
};

template <class scalar_t>
__global__ void __launch_bounds__(kStoredBlock) perturb_stored_kernel(const PerturbStoredParams p) {
  using acc_t = acc_type<scalar_t>;
  const int64_t i = blockIdx.x, number = p.row[i];
  const bool known = number >= 0 && number < p.count;
  const Sides of(p.images);
  const Seen s(p.images, p.view + 3 * i);
  const auto* row = static_cast<const uint8_t*>(p.values) + (known ? number : 0) * p.images.bytes;
  const int size = of.channels * of.height * of.width, step = static_cast<int>(blockDim.x);
  const bool channels_last = p.of_channel == 1;
  const auto pixel = [&](int e) {
    if (channels_last) return Pixel{e % of.channels, e / of.channels / of.width, e / of.channels % of.width};
    return Pixel{e / of.width / of.height, e / of.width % of.height, e % of.width};
  };

  double square = 0;
  if (known)
    for (int e = static_cast<int>(threadIdx.x); e < size; e += step) {
      const Pixel at = pixel(e);
      const int v = value_at(of, s, row, at.channel, at.y, at.column);
      square += static_cast<double>(v * v);
    }
  square = BlockTeam::reduce(square, Sum{});
  const bool moves = known && p.scale[number] > 0.0f && square > 0.0 && p.tau != 0.0;
  const double factor = moves ? p.tau / sqrt(square) : 0.0;
  const double magnitude = fabs(factor);
  const bool in_range = magnitude > 1e-30 && magnitude < 1e30;  // of float

  const auto* x = static_cast<const scalar_t*>(p.x) + i * p.of_batch;
  auto* out = static_cast<scalar_t*>(p.out) + i * p.of_batch;
  for (int e = static_cast<int>(threadIdx.x); e < size; e += step) {
    const Pixel at = pixel(e);
    const int64_t place = at.channel * p.of_channel + at.y * p.of_row + at.column * p.of_column;
    const int v = moves ? value_at(of, s, row, at.channel, at.y, at.column) : 0;
    if (!known)
      assign(out[place], static_cast<acc_t>(NAN));
    else if (v == 0)
      out[place] = x[place];  // to the bit
    else if (in_range)
      assign(out[place], to_acc(x[place]) + static_cast<acc_t>(factor) * static_cast<acc_t>(v));
    else
      assign(out[place], static_cast<acc_t>(static_cast<double>(to_acc(x[place])) + factor * v));
  }
}

void launch_perturb_stored(Dtype dtype, const PerturbStoredParams& p, CUstream_st* stream) {
  if (p.batch == 0 || p.images.bytes == 0) return;
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    launch_kernel<perturb_stored_kernel<scalar_t>>({p.batch, kStoredBlock}, stream, p);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// store_directions

template <class scalar_t>
struct PutBack {
  using acc_t = acc_type<scalar_t>;
  const StoreDirectionsParams& p;
  Sides of;
  Seen s;
  const scalar_t* grad;

  // Of the pixels of a side's block, those that the view shows: [begin, end) of the image.
  struct Span {
    int begin, end;
    __device__ bool empty() const { return begin >= end; }
  };
  __device__ Span span(int block, int offset, int side) const {
    const int first = block * of.resolution, shown = offset > 0 ? offset : 0;
    int last = first + of.resolution, limit = offset + side < side ? offset + side : side;
    return {first > shown ? first : shown, last < limit ? last : limit};
  }
  __device__ bool shows(int v) const {
    return !span(v / of.columns % of.rows, s.top, of.height).empty() && !span(v % of.columns, s.left, of.width).empty();
  }
  // Value v of A^T g
  __device__ acc_t operator()(int v) const {
    const int channel = v / of.columns / of.rows;
    const Span lines = span(v / of.columns % of.rows, s.top, of.height),
               columns = span(v % of.columns, s.left, of.width);
    acc_t sum = 0;
    for (int line = lines.begin; line < lines.end; ++line)
      for (int column = columns.begin; column < columns.end; ++column) {
        const int u = column - s.left;
        sum += to_acc(
            grad[channel * p.of_channel + (line - s.top) * p.of_row + (s.flip ? of.width - 1 - u : u) * p.of_column]);
      }
    return sum;
  }
};

template <class acc_t>
struct Largest {  // and whether all is finite: then `wrong` is 0
  acc_t magnitude, wrong;
};
template <class acc_t>
__device__ Largest<acc_t> shuffle_xor(unsigned mask, Largest<acc_t> v, int offset) {
  return {shuffle_xor(mask, v.magnitude, offset), shuffle_xor(mask, v.wrong, offset)};
}
struct LargerOf {
  template <class acc_t>
  __device__ Largest<acc_t> operator()(Largest<acc_t> a, Largest<acc_t> b) const {
    return {Max{}(a.magnitude, b.magnitude), a.wrong + b.wrong};
  }
};

template <class scalar_t>
__global__ void __launch_bounds__(kStoredBlock) store_directions_kernel(const StoreDirectionsParams p) {
  using acc_t = acc_type<scalar_t>;
  const int64_t i = blockIdx.x, number = p.row[i];
  if (number < 0 || number >= p.count) return;
  const Sides of(p.images);
  const PutBack<scalar_t> z{p, of, Seen(p.images, p.view + 3 * i),
                            static_cast<const scalar_t*>(p.grad) + i * p.of_batch};
  const int size = of.channels * of.rows * of.columns;
  const int begin = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  auto* row = static_cast<uint8_t*>(p.values) + number * p.images.bytes;

  Largest<acc_t> found{0, 0};
  for (int v = begin; v < size; v += step) {
    const acc_t value = z(v);
    found = LargerOf{}(found, Largest<acc_t>{value < 0 ? -value : value, value * 0});
  }
  found = BlockTeam::reduce(found, LargerOf{});
  const acc_t largest = found.magnitude;
  if (!(found.wrong == 0 && largest > 0)) return;

  if (of.signs) {  // where z is 0, shown or not, a sign stays; bits beyond the last one are 0
    for (int byte = begin; 8 * byte < size; byte += step) {
      const int count = size - 8 * byte < 8 ? size - 8 * byte : 8;
      unsigned up = 0, down = 0xffu << count;
      for (int k = 0; k < count; ++k) {
        const acc_t value = z(8 * byte + k);
        up |= static_cast<unsigned>(value > 0) << k;
        down |= static_cast<unsigned>(value < 0) << k;
      }
      row[byte] = static_cast<uint8_t>((row[byte] & ~down) | up);
    }
    if (threadIdx.x == 0) p.scale[number] = 1.0f;
    return;
  }

  auto* bytes = reinterpret_cast<int8_t*>(row);
  double square = 0;
  int kept = 0;  // the largest of what stays
  for (int v = begin; v < size; v += step)
    if (z.shows(v)) {
      const double value = static_cast<double>(z(v) / largest);
      square += value * value;
    } else {
      const int magnitude = bytes[v] < 0 ? -bytes[v] : bytes[v];
      kept = magnitude > kept ? magnitude : kept;
    }
  square = BlockTeam::reduce(square, Sum{});
  kept = BlockTeam::reduce(kept, Max{});
  const double scale = static_cast<double>(p.scale[number]);
  const double per_norm = 1.0 / sqrt(square), unit = Max{}(per_norm, kept * scale) / 127.0;
  const float of_new = static_cast<float>(per_norm / unit), of_old = static_cast<float>(scale / unit);
  for (int v = begin; v < size; v += step) {
    const float steps =
        z.shows(v) ? static_cast<float>(z(v) / largest) * of_new : static_cast<float>(bytes[v]) * of_old;
    bytes[v] = static_cast<int8_t>(static_cast<int>(rintf(steps)));  // ties to even
  }
  __syncthreads();  // all have read the old scale
  if (threadIdx.x == 0) p.scale[number] = static_cast<float>(unit);
}

void launch_store_directions(Dtype dtype, const StoreDirectionsParams& p, CUstream_st* stream) {
  if (p.batch == 0 || p.images.bytes == 0) return;
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    launch_kernel<store_directions_kernel<scalar_t>>({p.batch, kStoredBlock}, stream, p);
  });
}

}  // namespace hrrl::cuda
