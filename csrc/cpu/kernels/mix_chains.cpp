// (1 - m) x + m sum_j w_j chain_j(x), an image after another.
//
// An image becomes a picture of 8-bit levels, the channels of a pixel side by side in 32 bits, so that whatever moves
// pixels moves one word. A grey image has its level in all three. Operations go from picture to picture, of which three
// are enough; what a chain ends with is added to sums in float, and the image is read once and written once.
//
// Autocontrast, equalize, posterize, solarize, brightness and contrast are tables of levels. Neighbouring ones become
// one, for which the histogram of what is between them follows from the table; it passes over the pixels once.
//
// This file is compiled without contraction: every product and sum is rounded as the specification has it, so that the
// result is the same, to the bit, for every instruction set and on every device.
#include "cpu/kernels/image_operations.h"

namespace hrrl::cpu::HRRL_ISA {

// ---------------------------------------------------------------------------------------------------------------------
// Tables of levels

struct Tables {
  uint8_t level[3][256];
  bool any;  // else all levels stay
};

struct Counts {
  int64_t of[3][256];
};

static void count(const Picture& from, Counts& counts) {
  int32_t part[4][3][256] = {};  // neighbours are often equal, and would wait for each other
  const int64_t size = from.size(), whole = size / 4 * 4;
  for (int64_t e = 0; e < whole; e += 4)
    for (int k = 0; k < 4; ++k)
      for (int c = 0; c < 3; ++c) ++part[k][c][channel(from.pixels[e + k], c)];
  for (int64_t e = whole; e < size; ++e)
    for (int c = 0; c < 3; ++c) ++part[0][c][channel(from.pixels[e], c)];
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v)
      counts.of[c][v] = static_cast<int64_t>(part[0][c][v]) + part[1][c][v] + part[2][c][v] + part[3][c][v];
}

static void autocontrast(const int64_t* counts, uint8_t* table) {
  int low = 0, high = 255;
  while (counts[low] == 0) ++low;
  while (counts[high] == 0) --high;
  for (int v = 0; v < 256; ++v) table[v] = static_cast<uint8_t>(autocontrasted(v, low, high));
}

static void equalize(const int64_t* counts, int64_t size, uint8_t* table) {
  int last = 255;
  while (counts[last] == 0) --last;
  const int64_t step = (size - counts[last]) / 255;
  int64_t below = 0;
  for (int v = 0; v < 256; ++v) {
    table[v] = static_cast<uint8_t>(equalized(v, below, step));
    below += counts[v];
  }
}

// What comes after the tables that are pending: in a channel, level v goes to next[c][v].
static void compose(Tables& tables, const uint8_t next[3][256]) {
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) tables.level[c][v] = next[c][tables.any ? tables.level[c][v] : v];
  tables.any = true;
}

static void look_up(const Picture& from, word* to, const Tables& tables) {
  word moved[3][256];
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) moved[c][v] = static_cast<word>(tables.level[c][v]) << (8 * c);
  const int64_t size = from.size();
  for (int64_t e = 0; e < size; ++e) {
    const word p = from.pixels[e];
    to[e] = moved[0][p & 255] | moved[1][(p >> 8) & 255] | moved[2][(p >> 16) & 255];
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// A chain

struct Scratch {
  Picture original, one, other;
  double* lines;
  Counts* counts;  // of the original, if `counted`: chains often begin with a table
  bool counted;
};

struct Chain {
  Scratch& scratch;
  Picture now;  // without the tables that are pending
  Tables tables{};
  Counts counts;
  bool counted = false;

  explicit Chain(Scratch& scratch) : scratch(scratch), now(scratch.original) {}

  // A picture that is not the present one, nor the original
  Picture next() const { return now.pixels == scratch.one.pixels ? scratch.other : scratch.one; }

  void settle() {
    if (!tables.any) return;
    const Picture to = now.pixels == scratch.original.pixels ? scratch.one : now;  // in place
    look_up(now, to.pixels, tables);
    now = to;
    tables.any = false;
    counted = false;
  }

  template <class Function>
  void make(Function function) {
    settle();
    const Picture to = next();
    function(now, to.pixels);
    now = to;
    counted = false;
  }

  // A table for each channel by the histogram of what the chain has come to
  template <class Function>
  void by_counts(Function function) {
    const bool original = now.pixels == scratch.original.pixels;
    Counts& known = original ? *scratch.counts : counts;
    bool& done = original ? scratch.counted : counted;
    if (!done) count(now, known);
    done = true;
    uint8_t table[3][256];
    for (int c = 0; c < 3; ++c) {
      int64_t moved[256] = {};
      for (int v = 0; v < 256; ++v) moved[tables.any ? tables.level[c][v] : v] += known.of[c][v];
      function(moved, table[c]);
    }
    compose(tables, table);
  }

  template <class Function>
  void by_level(Function function) {
    uint8_t table[3][256];
    for (int c = 0; c < 3; ++c)
      for (int v = 0; v < 256; ++v) table[c][v] = static_cast<uint8_t>(function(v));
    compose(tables, table);
  }

  void operator()(int64_t operation, const double* parameter) {
    const auto factor = static_cast<float>(parameter[0]);
    double* const lines = scratch.lines;
    switch (operation) {
      case kAutocontrast:
        return by_counts([](const int64_t* of, uint8_t* table) { autocontrast(of, table); });
      case kEqualize:
        return by_counts([&](const int64_t* of, uint8_t* table) { equalize(of, now.size(), table); });
      case kPosterize:
        return by_level([&](int v) { return posterized(v, parameter[0]); });
      case kSolarize:
        return by_level([&](int v) { return solarized(v, parameter[0]); });
      case kBrightness:
        return by_level([&](int v) { return enhanced(v, 0.0f, factor); });
      case kContrast: {
        settle();
        const auto mean = static_cast<float>(rounded_mean(grey_sum(now), now.size()));
        return by_level([&](int v) { return enhanced(v, mean, factor); });
      }
      case kAffine:
        return make([&](const Picture& from, word* to) { affine(from, to, parameter, lines); });
      case kCrop:
        return make([&](const Picture& from, word* to) { crop(from, to, parameter, lines); });
      case kColor:
        return make([&](const Picture& from, word* to) { color(from, to, factor); });
      case kHue:
        return make([&](const Picture& from, word* to) { hue(from, to, parameter[0]); });
      case kSharpness:
        return make([&](const Picture& from, word* to) { sharpness(from, to, factor, lines); });
      case kBlur: {
        const Box box = box_of(parameter[0]);
        make([&](const Picture& from, word* to) { box_rows(from, to, box, lines); });
        for (int time = 0; time < 3; ++time) make([&](const Picture& from, word* to) { box_columns(from, to, box); });
        return;
      }
      default:
        return;
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// An image

template <class scalar_t>
struct SumType {
  using type = float;
};
template <>
struct SumType<double> {
  using type = double;
};

HRRL_INLINE float as_number(uint8_t v) { return v; }
HRRL_INLINE double as_number(double v) { return v; }
template <class scalar_t>
HRRL_INLINE float as_number(scalar_t v) {
  return to_float(v);
}
template <class scalar_t, class sum_t>
HRRL_INLINE word as_level(sum_t v) {
  if constexpr (std::is_same_v<scalar_t, uint8_t>) return static_cast<word>(v);
  const sum_t scaled = v * 255, low = scaled > 0 ? scaled : 0;
  return static_cast<word>(static_cast<int32_t>(rounded(low < 255 ? low : 255)));
}
template <class scalar_t, class sum_t>
HRRL_INLINE void put(scalar_t& to, sum_t v) {
  if constexpr (std::is_same_v<scalar_t, uint8_t>) {
    to = static_cast<uint8_t>(static_cast<int32_t>(rounded(level_within(v))));
  } else {
    v = v < 0 ? 0 : v;  // NaN stays
    assign(to, v > 1 ? 1 : v);
  }
}

template <class scalar_t, bool kDense>  // kDense: the pixels of a line are neighbours
static void read_image(const ImageShape& shape, const scalar_t* image, word* __restrict pixels,
                       typename SumType<scalar_t>::type* __restrict sums, typename SumType<scalar_t>::type share) {
  const int64_t step = kDense ? 1 : shape.of_column, size = shape.height * shape.width;
  for (int64_t c = 0; c < shape.channels; ++c)
    for (int64_t y = 0; y < shape.height; ++y) {
      const scalar_t* const line = image + c * shape.of_channel + y * shape.of_row;
      word* const of_line = pixels + y * shape.width;
      auto* const to = sums + c * size + y * shape.width;
      for (int64_t x = 0; x < shape.width; ++x) {
        const auto v = as_number(line[x * step]);
        to[x] = v * share;
        const word level = as_level<scalar_t>(v) << (8 * c);
        of_line[x] = c == 0 ? level : of_line[x] | level;
      }
    }
  if (shape.channels == 1)
    for (int64_t e = 0; e < size; ++e) pixels[e] *= 0x010101u;
}

template <class scalar_t, bool kDense>
static void write_image(const ImageShape& shape, const typename SumType<scalar_t>::type* __restrict sums,
                        scalar_t* __restrict image) {
  const int64_t step = kDense ? 1 : shape.of_column, size = shape.height * shape.width;
  for (int64_t c = 0; c < shape.channels; ++c)
    for (int64_t y = 0; y < shape.height; ++y) {
      const auto* const from = sums + c * size + y * shape.width;
      scalar_t* const line = image + c * shape.of_channel + y * shape.of_row;
      for (int64_t x = 0; x < shape.width; ++x) put(line[x * step], from[x]);
    }
}

template <class sum_t>
static void add_chain(const Picture& made, int64_t channels, sum_t share, sum_t* __restrict sums) {
  const int64_t size = made.size();
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t e = 0; e < size; ++e)
      sums[c * size + e] += static_cast<sum_t>(channel(made.pixels[e], static_cast<int>(c))) * share;
}

template <class scalar_t>
static void mix_image(const MixChainsArgs& args, int64_t i, double* memory) {
  using sum_t = typename SumType<scalar_t>::type;
  const ImageShape& shape = args.shape;
  const ImageProgram& program = args.program;
  const int64_t size = shape.height * shape.width;
  word* const pixels = reinterpret_cast<word*>(memory);
  const auto picture = [&](int64_t n) { return Picture{pixels + n * size, shape.height, shape.width}; };
  sum_t* const sums = reinterpret_cast<sum_t*>(memory + 2 * size);
  Counts counts;
  Scratch scratch{picture(0), picture(1), picture(2), memory + size * (2 + shape.channels), &counts, false};
  const auto* image = static_cast<const scalar_t*>(args.images) + i * shape.of_batch;
  auto* out = static_cast<scalar_t*>(args.out) + i * shape.of_batch;

  const float mix = program.mix[i];
  const auto original = static_cast<sum_t>(1.0f - mix);
  const bool dense = shape.of_column == 1;
  dense ? read_image<scalar_t, true>(shape, image, pixels, sums, original)
        : read_image<scalar_t, false>(shape, image, pixels, sums, original);
  for (int64_t j = 0; j < program.chains; ++j) {
    const int64_t at = i * program.chains + j;
    constexpr float kTop = std::is_same_v<scalar_t, uint8_t> ? 1.0f : static_cast<float>(1.0 / 255);
    const auto share = static_cast<sum_t>(mix * program.weight[at] * kTop);
    if (share == 0) continue;
    Chain chain(scratch);
    for (int64_t step = at * program.steps; step < (at + 1) * program.steps; ++step)
      chain(program.operation[step], program.parameter + kImageParameters * step);
    chain.settle();
    add_chain(chain.now, shape.channels, share, sums);
  }
  dense ? write_image<scalar_t, true>(shape, sums, out) : write_image<scalar_t, false>(shape, sums, out);
}

void mix_chains(const MixChainsArgs& args, int64_t begin, int64_t end, double* scratch) {
  for (int64_t i = begin; i < end; ++i) switch (args.type) {
      case ImageType::kLevels:
        mix_image<uint8_t>(args, i, scratch);
        break;
      case ImageType::kFloat:
        mix_image<float>(args, i, scratch);
        break;
      case ImageType::kDouble:
        mix_image<double>(args, i, scratch);
        break;
      case ImageType::kHalf:
        mix_image<half>(args, i, scratch);
        break;
      case ImageType::kBFloat16:
        mix_image<bfloat16>(args, i, scratch);
        break;
    }
}

}  // namespace hrrl::cpu::HRRL_ISA
