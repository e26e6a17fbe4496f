// The operations of mix_chains, from a picture of 8-bit levels to another (csrc/cpu/kernels/mix_chains.cpp).
//
// - affine and crop find places and weights line by line, and once for all lines where they are the same in them. What
//   lies on whole pixels is moved, and what lies on whole rows or columns has two neighbours instead of four.
// - sharpness adds up two channels of a word at a time.
#pragma once

#include "common/pixels.h"
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

using namespace hrrl::pixels;

struct Picture {
  word* pixels;
  int64_t height, width;
  int64_t size() const { return height * width; }
};

// ---------------------------------------------------------------------------------------------------------------------
// Geometry

// Where the pixels of a line lie among the old ones, along one direction: between `first` and `second`, so far from the
// first; `inside`: all ones, or 0 where that is outside of the image.
struct Places {
  int32_t *first, *second;
  float* share;
  word* inside;
  bool whole;  // all shares are 0
};

// at(x): the place of pixel x, 0 .. count
template <class At>
HRRL_INLINE void find_places(Places& places, int64_t count, int64_t size, At at) {
  int32_t* __restrict first = places.first, * __restrict second = places.second;
  float* __restrict share = places.share;
  word* __restrict inside = places.inside;
  const auto side = static_cast<double>(size);
  word fractions = 0;
  for (int64_t x = 0; x < count; ++x) {
    const double place = at(x);
    const Place found = placed(place, static_cast<int32_t>(size));
    inside[x] = pixels::inside(place, side) ? ~word{0} : word{0};
    first[x] = found.first;
    second[x] = found.second;
    share[x] = found.share;
    fractions |= bit_cast<word>(found.share);
  }
  places.whole = fractions == 0;
}

// A line of pixels, each between old ones: corner(x, below, right) is the number of one of the four, across[x] and
// down(x) are how far it is from the first. Those that weigh nothing in the whole line are not read; half is 0.5 to be
// rounded, 0 to be cut off.
template <bool kAcross, bool kDown, class Corner, class Down>
HRRL_INLINE void line_between(const word* from, word* __restrict to, int64_t count, const float* across, Down down,
                              Corner corner, float half) {
  for (int64_t x = 0; x < count; ++x) {
    const word a = from[corner(x, 0, 0)], b = kAcross ? from[corner(x, 0, 1)] : 0;
    const word c = kDown ? from[corner(x, 1, 0)] : 0, d = kAcross && kDown ? from[corner(x, 1, 1)] : 0;
    int level[3];
    for (int k = 0; k < 3; ++k) {
      auto above = static_cast<float>(channel(a, k));
      if (kAcross) above = between(above, static_cast<float>(channel(b, k)), across[x]);
      if (kDown) {
        auto below = static_cast<float>(channel(c, k));
        if (kAcross) below = between(below, static_cast<float>(channel(d, k)), across[x]);
        above = between(above, below, down(x));
      }
      level[k] = static_cast<int>(above + half);
    }
    to[x] = pixel_of(level[0], level[1], level[2]);
  }
}

template <class Corner, class Down>
HRRL_INLINE void line_between(const word* from, word* to, int64_t count, const Places& columns, bool whole_rows,
                              Down down, Corner corner, float half) {
  if (columns.whole && whole_rows) {
    for (int64_t x = 0; x < count; ++x) to[x] = from[corner(x, 0, 0)];
  } else if (columns.whole) {
    line_between<false, true>(from, to, count, columns.share, down, corner, half);
  } else if (whole_rows) {
    line_between<true, false>(from, to, count, columns.share, down, corner, half);
  } else {
    line_between<true, true>(from, to, count, columns.share, down, corner, half);
  }
}

static Places places_at(double*& lines, int64_t count) {
  const int64_t half = (count + 1) / 2;
  auto* p = lines;
  lines += 4 * half;
  return {reinterpret_cast<int32_t*>(p), reinterpret_cast<int32_t*>(p + half), reinterpret_cast<float*>(p + 2 * half),
          reinterpret_cast<word*>(p + 3 * half), false};
}

static void affine(const Picture& from, word* to, const double* matrix, double* lines) {
  const double a = matrix[0], b = matrix[1], c = matrix[2], d = matrix[3], e = matrix[4], f = matrix[5];
  const int64_t height = from.height, width = from.width;
  double* const of_a = lines;
  double* const of_d = lines + width;
  lines += 2 * width;
  Places columns = places_at(lines, width), rows = places_at(lines, width);
  for (int64_t x = 0; x < width; ++x) {
    of_a[x] = a * (static_cast<double>(x) + 0.5);
    of_d[x] = d * (static_cast<double>(x) + 0.5);
  }
  const auto stride = static_cast<int32_t>(width);
  for (int64_t y = 0; y < height; ++y) {
    const double of_b = b * (static_cast<double>(y) + 0.5), of_e = e * (static_cast<double>(y) + 0.5);
    if (b != 0 || y == 0) find_places(columns, width, width, [&](int64_t x) { return (of_a[x] + of_b) + c; });
    const bool level = d == 0;  // all pixels of the line are in the same rows
    find_places(rows, level ? 1 : width, height, [&](int64_t x) { return (of_d[x] + of_e) + f; });
    word* const line = to + y * width;
    if (level) {
      const word* const above = from.pixels + rows.first[0] * width;
      const int64_t down = (rows.second[0] - rows.first[0]) * width;
      const float share = rows.share[0];
      line_between(
          above, line, width, columns, rows.whole, [&](int64_t) { return share; },
          [&](int64_t x, int below, int right) {
            return (right ? columns.second[x] : columns.first[x]) + (below ? down : 0);
          },
          0.0f);
      const word inside = rows.inside[0];
      for (int64_t x = 0; x < width; ++x) line[x] &= columns.inside[x] & inside;
    } else {
      line_between(
          from.pixels, line, width, columns, rows.whole, [&](int64_t x) { return rows.share[x]; },
          [&](int64_t x, int below, int right) {
            return (below ? rows.second[x] : rows.first[x]) * stride + (right ? columns.second[x] : columns.first[x]);
          },
          0.0f);
      for (int64_t x = 0; x < width; ++x) line[x] &= columns.inside[x] & rows.inside[x];
    }
  }
}

static void find_part(Places& places, int64_t begin, int64_t end, int64_t size, const Part& part, bool flip) {
  word fractions = 0;
  for (int64_t x = begin; x < end; ++x) {
    const Place found = placed(static_cast<int32_t>(flip ? size - 1 - x : x), part);
    places.first[x - begin] = found.first;
    places.second[x - begin] = found.second;
    places.share[x - begin] = found.share;
    fractions |= bit_cast<word>(found.share);
  }
  places.whole = fractions == 0;
}

static void crop(const Picture& from, word* to, const double* box, double* lines) {
  const int64_t height = from.height, width = from.width;
  Places columns = places_at(lines, width), row = places_at(lines, 1);
  const Part across = part_of(box[1], box[3], static_cast<double>(width)),
             down = part_of(box[0], box[2], static_cast<double>(height));
  find_part(columns, 0, width, width, across, box[4] > 0);
  for (int64_t y = 0; y < height; ++y) {
    find_part(row, y, y + 1, height, down, false);
    const int64_t below = (row.second[0] - row.first[0]) * width;
    const float share = row.share[0];
    line_between(
        from.pixels + row.first[0] * width, to + y * width, width, columns, row.whole, [&](int64_t) { return share; },
        [&](int64_t x, int lower, int right) {
          return (right ? columns.second[x] : columns.first[x]) + (lower ? below : 0);
        },
        0.5f);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Colour, sharpness, blur

static int64_t grey_sum(const Picture& from) {
  int64_t total = 0;
  const int64_t size = from.size();
  for (int64_t e = 0; e < size; ++e) total += grey_of(from.pixels[e]);
  return total;
}

static void color(const Picture& from, word* to, float factor) {
  const int64_t size = from.size();
  for (int64_t e = 0; e < size; ++e) to[e] = coloured(from.pixels[e], factor);
}

static void hue(const Picture& from, word* to, double turn) {
  const auto sextants = static_cast<float>(turn * 6);
  const int64_t size = from.size();
  for (int64_t e = 0; e < size; ++e) to[e] = turned(from.pixels[e], sextants);
}

static void sharpness(const Picture& from, word* to, float factor, double* lines) {
  const int64_t height = from.height, width = from.width;
  constexpr word kTwo = 0x00ff00ffu;  // red and blue, or green: sums of up to 13 levels stay apart
  word* __restrict two = reinterpret_cast<word*>(lines);
  word* __restrict one = two + width;
  for (int64_t y = 0; y < height; ++y) {
    const word* const line = from.pixels + y * width;
    word* const out = to + y * width;
    const bool edge = y == 0 || y == height - 1 || width < 3;
    if (!edge)
      for (int64_t x = 0; x < width; ++x) {
        const word a = line[x - width], b = line[x], c = line[x + width];
        two[x] = (a & kTwo) + (b & kTwo) + (c & kTwo);
        one[x] = ((a >> 8) & 255) + ((b >> 8) & 255) + ((c >> 8) & 255);
      }
    for (int64_t x = 0; x < width; x += edge || width < 2 ? 1 : width - 1) {
      const word p = line[x];
      out[x] = enhanced(p, static_cast<float>(channel(p, 0)), static_cast<float>(channel(p, 1)),
                        static_cast<float>(channel(p, 2)), factor);
    }
    if (edge) continue;
    for (int64_t x = 1; x < width - 1; ++x) {
      const word p = line[x];
      const word both = two[x - 1] + two[x] + two[x + 1] + 4 * (p & kTwo);
      const word green = one[x - 1] + one[x] + one[x + 1] + 4 * ((p >> 8) & 255);
      out[x] = enhanced(p, smoothed(both & 0xffff), smoothed(green), smoothed(both >> 16), factor);
    }
  }
}

// Lines of floats, a channel after the other
HRRL_INLINE void spread(const word* line, int64_t width, float* __restrict to, int64_t step) {
  for (int c = 0; c < 3; ++c)
    for (int64_t x = 0; x < width; ++x) to[c * step + x] = static_cast<float>(channel(line[x], c));
}

HRRL_INLINE void gather(const float* __restrict sums, int64_t width, word* __restrict to) {
  for (int64_t x = 0; x < width; ++x)
    to[x] =
        pixel_of(static_cast<int>(level_within(sums[x] + 0.5f)), static_cast<int>(level_within(sums[width + x] + 0.5f)),
                 static_cast<int>(level_within(sums[2 * width + x] + 0.5f)));
}

struct BlurWeights {
  float of[kBlurReach + 1];
  int64_t reach;
  explicit BlurWeights(const double* neighbours) : reach(0) {
    double own = 1.0;
    for (int64_t k = 0; k < kBlurReach; ++k) {
      own = own - 2 * neighbours[k];
      of[k + 1] = static_cast<float>(neighbours[k]);
      if (of[k + 1] != 0.0f) reach = k + 1;
    }
    of[0] = static_cast<float>(own);
  }
};

static void blur_rows(const Picture& from, word* to, const BlurWeights& weights, double* lines) {
  const int64_t width = from.width, step = width + 2 * kBlurReach;
  float* __restrict around = reinterpret_cast<float*>(lines);
  float* __restrict sums = around + 3 * step;
  for (int64_t y = 0; y < from.height; ++y) {
    spread(from.pixels + y * width, width, around + kBlurReach, step);
    for (int c = 0; c < 3; ++c) {
      float* const line = around + c * step + kBlurReach;
      for (int64_t k = 1; k <= kBlurReach; ++k) {
        line[-k] = line[0];
        line[width - 1 + k] = line[width - 1];
      }
      for (int64_t x = 0; x < width; ++x) sums[c * width + x] = weights.of[0] * line[x];
      for (int64_t k = 1; k <= weights.reach; ++k)
        for (int64_t x = 0; x < width; ++x) sums[c * width + x] += weights.of[k] * (line[x - k] + line[x + k]);
    }
    gather(sums, width, to + y * width);
  }
}

static void blur_columns(const Picture& from, word* to, const BlurWeights& weights, double* lines) {
  const int64_t width = from.width, height = from.height;
  float* __restrict sums = reinterpret_cast<float*>(lines);
  for (int64_t y = 0; y < height; ++y) {
    const word* const line = from.pixels + y * width;
    for (int c = 0; c < 3; ++c)
      for (int64_t x = 0; x < width; ++x) sums[c * width + x] = weights.of[0] * static_cast<float>(channel(line[x], c));
    for (int64_t k = 1; k <= weights.reach; ++k) {
      const word* const above = from.pixels + (y - k > 0 ? y - k : 0) * width;
      const word* const below = from.pixels + (y + k < height ? y + k : height - 1) * width;
      for (int c = 0; c < 3; ++c)
        for (int64_t x = 0; x < width; ++x)
          sums[c * width + x] += weights.of[k] * static_cast<float>(channel(above[x], c) + channel(below[x], c));
    }
    gather(sums, width, to + y * width);
  }
}

}  // namespace hrrl::cpu::HRRL_ISA
