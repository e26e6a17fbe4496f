// Directions that are stored in the coordinates of their images: x moves along one as its view shows it, and the
// gradient of a view goes back.
//
// What a view shows of an image is a rectangle. Its edges are found once for an example, and lines run over it without
// asking any pixel where it is.
// - perturb_stored: the norm of the rectangle (of signs it is the root of their number), then x and out, line by line.
// - store_directions: the rectangle goes to a scratch row in the image's coordinates, where passes are of one stride:
//   the largest value, by which all are divided so that no square leaves its range; their norm; then the codes.
// Squares of bytes are whole numbers, and their sums exact in any order. Others are added up in double.
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

HRRL_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
HRRL_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Line y of a view shows line top + y of its image, and column u before a flip column left + u.
struct Seen {
  int64_t top, left, flip;
  int64_t y_begin, y_end, u_begin, u_end;  // what is in the image
};

static Seen seen(const StoredImages& of, const int64_t* view) {
  Seen s;
  // A view that lies further out shows no more of the image, and no sum of it overflows.
  const auto offset = [&](int64_t at, int64_t size) {
    return at < of.padding - size ? -size : at > of.padding + size ? size : at - of.padding;
  };
  s.top = offset(view[0], of.height);
  s.left = offset(view[1], of.width);
  s.flip = view[2] > 0;
  s.y_begin = most(0, -s.top);
  s.y_end = most(s.y_begin, least(of.height, of.height - s.top));
  s.u_begin = most(0, -s.left);
  s.u_end = most(s.u_begin, least(of.width, of.width - s.left));
  return s;
}

HRRL_INLINE bool sign_of(const uint8_t* bits, int64_t p) { return (bits[p >> 3] >> (p & 7)) & 1; }

// ---------------------------------------------------------------------------------------------------------------------
// perturb_stored

template <bool kWhole>  // resolution 1
static double sum_of_squares(const StoredImages& of, const Seen& s, const int8_t* values) {
  int64_t total = 0;
  for (int64_t c = 0; c < of.channels; ++c)
    for (int64_t y = s.y_begin; y < s.y_end; ++y) {
      const int64_t line = kWhole ? s.top + y : (s.top + y) / of.resolution;
      const int8_t* from = values + (c * of.rows + line) * of.columns;
      int64_t u = s.u_begin;
      while (u < s.u_end) {  // 2^16 squares fit an int
        int32_t part = 0;
        for (const int64_t end = least(s.u_end, u + 65536); u < end; ++u) {
          const int32_t v = kWhole ? from[s.left + u] : from[(s.left + u) / of.resolution];
          part += v * v;
        }
        total += part;
      }
    }
  return static_cast<double>(total);
}

// Of column u: where x has it, and its value in units of the row's.
template <class acc_t, class scalar_t, class Value>
HRRL_INLINE void move_line(const scalar_t* __restrict x, scalar_t* __restrict out, int64_t step, const Seen& s,
                           int64_t width, acc_t factor, Value value) {
  const auto moved = [&](scalar_t from, int64_t u) {
    if constexpr (sizeof(scalar_t) == sizeof(double))
      return from + factor * static_cast<double>(value(u));
    else
      return static_cast<float>(static_cast<acc_t>(to_float(from)) + factor * static_cast<acc_t>(value(u)));
  };
  const int64_t begin = s.u_begin, end = s.u_end;
  if (step == 1 && !s.flip)
    for (int64_t u = begin; u < end; ++u) assign(out[u], moved(x[u], u));
  else if (step == 1)
    for (int64_t u = begin; u < end; ++u) assign(out[width - 1 - u], moved(x[width - 1 - u], u));
  else
    for (int64_t u = begin; u < end; ++u) {
      const int64_t at = (s.flip ? width - 1 - u : u) * step;
      assign(out[at], moved(x[at], u));
    }
}

template <class scalar_t>
HRRL_INLINE void copy_line(const scalar_t* x, scalar_t* out, int64_t step, int64_t width) {
  if (step == 1)
    __builtin_memcpy(out, x, static_cast<size_t>(width) * sizeof(scalar_t));
  else
    for (int64_t j = 0; j < width; ++j) out[j * step] = x[j * step];
}

template <bool kWhole, class acc_t, class scalar_t>
static void perturb_image(const PerturbStoredArgs& a, const Seen& s, const scalar_t* x, scalar_t* out,
                          const void* values, acc_t factor, bool moves) {
  const StoredImages& of = a.images;
  for (int64_t c = 0; c < of.channels; ++c)
    for (int64_t y = 0; y < of.height; ++y) {
      const int64_t at = c * a.of_channel + y * a.of_row;
      copy_line(x + at, out + at, a.of_column, of.width);
      if (!moves || y < s.y_begin || y >= s.y_end) continue;
      const int64_t line = kWhole ? s.top + y : (s.top + y) / of.resolution;
      const int64_t first = (c * of.rows + line) * of.columns;
      const int64_t left = s.left, r = of.resolution;
      const auto column = [left, r](int64_t u) { return kWhole ? left + u : (left + u) / r; };
      if (of.signs) {
        const auto* bits = static_cast<const uint8_t*>(values);
        move_line<acc_t>(x + at, out + at, a.of_column, s, of.width, factor,
                         [&](int64_t u) { return 2 * static_cast<int>(sign_of(bits, first + column(u))) - 1; });
      } else {
        const int8_t* __restrict bytes = static_cast<const int8_t*>(values) + first;
        move_line<acc_t>(x + at, out + at, a.of_column, s, of.width, factor,
                         [=](int64_t u) { return static_cast<int>(bytes[column(u)]); });
      }
    }
}

template <bool kWhole, class scalar_t>
static void perturb_images(const PerturbStoredArgs& a, int64_t begin, int64_t end) {
  const StoredImages& of = a.images;
  for (int64_t i = begin; i < end; ++i) {
    const Seen s = seen(of, a.view + 3 * i);
    const auto* values = static_cast<const uint8_t*>(a.values) + a.row[i] * of.bytes;
    const auto* x = static_cast<const scalar_t*>(a.x) + i * a.of_batch;
    auto* out = static_cast<scalar_t*>(a.out) + i * a.of_batch;
    const double square = of.signs ? static_cast<double>(of.channels * (s.y_end - s.y_begin) * (s.u_end - s.u_begin))
                                   : sum_of_squares<kWhole>(of, s, reinterpret_cast<const int8_t*>(values));
    const bool moves = a.scale[a.row[i]] > 0.0f && square > 0.0 && a.tau != 0.0;
    const double factor = moves ? a.tau / __builtin_sqrt(square) : 0.0;
    const double magnitude = __builtin_fabs(factor);
    if (magnitude > 1e-30 && magnitude < 1e30 && sizeof(scalar_t) < sizeof(double))
      perturb_image<kWhole>(a, s, x, out, values, static_cast<float>(factor), moves);
    else
      perturb_image<kWhole>(a, s, x, out, values, factor, moves);
  }
}

void perturb_stored(Dtype dtype, const PerturbStoredArgs& args, int64_t begin, int64_t end) {
  dispatch(dtype, [&](auto type) {
    if (args.images.resolution == 1)
      perturb_images<true, decltype(type)>(args, begin, end);
    else
      perturb_images<false, decltype(type)>(args, begin, end);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// store_directions

// Each value of the scratch row is the sum of what the view shows of its block; 0 where it shows nothing.
template <class acc_t, class scalar_t>
static void put_back(const StoreDirectionsArgs& a, const Seen& s, const scalar_t* grad, acc_t* z) {
  const StoredImages& of = a.images;
  const int64_t size = of.channels * of.rows * of.columns, step = s.flip ? -a.of_column : a.of_column;
  const int64_t begin = s.u_begin, end = s.u_end;
  for (int64_t p = 0; p < size; ++p) z[p] = 0;
  for (int64_t c = 0; c < of.channels; ++c)
    for (int64_t y = s.y_begin; y < s.y_end; ++y) {
      const scalar_t* from = grad + c * a.of_channel + y * a.of_row + (s.flip ? (of.width - 1) * a.of_column : 0);
      acc_t* __restrict to = z + (c * of.rows + (s.top + y) / of.resolution) * of.columns;
      const auto value = [](scalar_t v) {
        if constexpr (sizeof(scalar_t) == sizeof(double))
          return v;
        else
          return to_float(v);
      };
      if (of.resolution > 1)
        for (int64_t u = begin; u < end; ++u) to[(s.left + u) / of.resolution] += value(from[u * step]);
      else if (step == 1)
        for (int64_t u = begin; u < end; ++u) to[s.left + u] = value(from[u]);
      else if (step == -1)
        for (int64_t u = begin; u < end; ++u) to[s.left + u] = value(from[-u]);
      else
        for (int64_t u = begin; u < end; ++u) to[s.left + u] = value(from[u * step]);
    }
}

// Lanes that the compiler makes vectors of: what is summed or compared in one chain may not be reordered.
constexpr int kChains = 16;

// The largest magnitude; NaN where there is an Inf or a NaN.
template <class acc_t>
static acc_t largest_of(const acc_t* z, int64_t size) {
  acc_t largest[kChains] = {}, wrong[kChains] = {};
  const auto look = [&](acc_t v, int chain) {
    const acc_t magnitude = v < 0 ? -v : v;
    largest[chain] = magnitude > largest[chain] ? magnitude : largest[chain];
    wrong[chain] += v * 0;
  };
  int64_t p = 0;
  for (; p + kChains <= size; p += kChains)
    for (int chain = 0; chain < kChains; ++chain) look(z[p + chain], chain);
  for (; p < size; ++p) look(z[p], 0);
  for (int chain = 1; chain < kChains; ++chain) {
    largest[0] = largest[chain] > largest[0] ? largest[chain] : largest[0];
    wrong[0] += wrong[chain];
  }
  return wrong[0] == 0 ? largest[0] : wrong[0];
}

template <class acc_t>
static double norm_of(const acc_t* z, int64_t size) {
  double total[kChains] = {};
  int64_t p = 0;
  for (; p + kChains <= size; p += kChains)
    for (int chain = 0; chain < kChains; ++chain) {
      const double v = static_cast<double>(z[p + chain]);
      total[chain] += v * v;
    }
  for (; p < size; ++p) total[0] += static_cast<double>(z[p]) * static_cast<double>(z[p]);
  for (int chain = 1; chain < kChains; ++chain) total[0] += total[chain];
  return __builtin_sqrt(total[0]);
}

// To the nearest, ties to even, of |v| below 2^21.
HRRL_INLINE int8_t rounded(float v) {
  constexpr float kMagic = 12582912.0f;
  return static_cast<int8_t>(static_cast<int>((v + kMagic) - kMagic));
}

// z is 1 at its largest. What is not in [line_begin, line_end) x [column_begin, column_end) keeps its value.
template <class acc_t>
static void write_bytes(const StoredImages& of, const Seen& s, const acc_t* __restrict z, int8_t* __restrict values,
                        float& scale) {
  const int64_t size = of.channels * of.rows * of.columns, columns = of.columns, r = of.resolution;
  const int64_t line_begin = (s.top + s.y_begin) / r, line_end = (s.top + s.y_end + r - 1) / r;
  const int64_t column_begin = (s.left + s.u_begin) / r, column_end = (s.left + s.u_end + r - 1) / r;
  // f(place, begin, end) for every line: [begin, end) is new there, and may be empty.
  const auto each_line = [&](auto f) {
    for (int64_t p = 0; p < size; p += columns) {
      const int64_t line = p / columns % of.rows;
      const bool is_new = line >= line_begin && line < line_end;
      f(p, is_new ? column_begin : columns, is_new ? column_end : columns);
    }
  };
  int8_t low = 0, high = 0;  // of what stays
  each_line([&](int64_t p, int64_t begin, int64_t end) {
    const auto look = [&](int8_t v) {
      low = v < low ? v : low;
      high = v > high ? v : high;
    };
    for (int64_t j = 0; j < begin; ++j) look(values[p + j]);
    for (int64_t j = end; j < columns; ++j) look(values[p + j]);
  });
  const int kept = high > -low ? high : -low;
  const double per_norm = 1.0 / norm_of(z, size), largest_kept = kept * static_cast<double>(scale);
  const double unit = (per_norm > largest_kept ? per_norm : largest_kept) / 127.0;
  const float of_new = static_cast<float>(per_norm / unit), of_old = static_cast<float>(scale / unit);
  each_line([&](int64_t p, int64_t begin, int64_t end) {
    for (int64_t j = 0; j < begin; ++j) values[p + j] = rounded(static_cast<float>(values[p + j]) * of_old);
    for (int64_t j = begin; j < end; ++j) values[p + j] = rounded(static_cast<float>(z[p + j]) * of_new);
    for (int64_t j = end; j < columns; ++j) values[p + j] = rounded(static_cast<float>(values[p + j]) * of_old);
  });
  scale = static_cast<float>(unit);
}

// Where z is 0, shown or not, a sign stays as it is. Bits beyond the last one are 0.
template <class acc_t>
static void write_signs(const acc_t* __restrict z, int64_t size, uint8_t* __restrict bits) {
  const auto write = [&](int64_t p, int count) {
    unsigned up = 0, down = 0xffu << count;
    for (int k = 0; k < count; ++k) {
      up |= static_cast<unsigned>(z[p + k] > 0) << k;
      down |= static_cast<unsigned>(z[p + k] < 0) << k;
    }
    bits[p >> 3] = static_cast<uint8_t>((bits[p >> 3] & ~down) | up);
  };
  int64_t p = 0;
  for (; p + 8 <= size; p += 8) write(p, 8);
  if (p < size) write(p, static_cast<int>(size - p));
}

template <class acc_t, class scalar_t>
static void store_images(const StoreDirectionsArgs& a, int64_t begin, int64_t end, acc_t* z) {
  const StoredImages& of = a.images;
  const int64_t size = of.channels * of.rows * of.columns;
  for (int64_t i = begin; i < end; ++i) {
    const Seen s = seen(of, a.view + 3 * i);
    put_back(a, s, static_cast<const scalar_t*>(a.grad) + i * a.of_batch, z);
    const acc_t largest = largest_of(z, size);
    if (!(largest > 0)) continue;  // nothing, or not a number
    auto* values = static_cast<uint8_t*>(a.values) + a.row[i] * of.bytes;
    float& scale = a.scale[a.row[i]];
    if (of.signs) {
      write_signs(z, size, values);
      scale = 1.0f;
      continue;
    }
    for (int64_t p = 0; p < size; ++p) z[p] /= largest;
    write_bytes(of, s, z, reinterpret_cast<int8_t*>(values), scale);
  }
}

void store_directions(Dtype dtype, const StoreDirectionsArgs& args, int64_t begin, int64_t end, double* scratch) {
  dispatch(dtype, [&](auto type) {
    using scalar_t = decltype(type);
    if constexpr (sizeof(scalar_t) == sizeof(double))
      store_images<double, scalar_t>(args, begin, end, scratch);
    else
      store_images<float, scalar_t>(args, begin, end, reinterpret_cast<float*>(scratch));
  });
}

}  // namespace hrrl::cpu::HRRL_ISA
