// The operations of mix_chains, from a picture of 8-bit levels to another (csrc/cpu/kernels/mix_chains.cpp).
//
// - affine and crop find places and weights line by line, and once for all lines where they are the same in them. What
//   lies on whole pixels is moved, and what lies on whole rows or columns has two neighbours instead of four.
// - sharpness and blur add up two channels of a word at a time. A blur is three boxes along rows, a line after another,
//   and three along columns, a picture after another.
#pragma once

#include <type_traits>

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
  const int steps = hue_steps(turn);
  const int64_t size = from.size();
  for (int64_t e = 0; e < size; ++e) to[e] = turned(from.pixels[e], steps);
}

HRRL_INLINE word red_and_blue(word pixel) { return pixel & kRedAndBlue; }
HRRL_INLINE word green(word pixel) { return (pixel >> 8) & 255; }

static void sharpness(const Picture& from, word* to, float factor, double* lines) {
  const int64_t height = from.height, width = from.width;
  word* __restrict two = reinterpret_cast<word*>(lines);
  word* __restrict one = two + width;
  for (int64_t y = 0; y < height; ++y) {
    const word* const line = from.pixels + y * width;
    word* const out = to + y * width;
    const bool edge = y == 0 || y == height - 1 || width < 3;
    if (!edge)
      for (int64_t x = 0; x < width; ++x) {
        const word a = line[x - width], b = line[x], c = line[x + width];
        two[x] = red_and_blue(a) + red_and_blue(b) + red_and_blue(c);
        one[x] = green(a) + green(b) + green(c);
      }
    for (int64_t x = 0; x < width; x += edge || width < 2 ? 1 : width - 1) {
      const word p = line[x];
      out[x] = enhanced(p, static_cast<float>(channel(p, 0)), static_cast<float>(channel(p, 1)),
                        static_cast<float>(channel(p, 2)), factor);
    }
    if (edge) continue;
    for (int64_t x = 1; x < width - 1; ++x) {
      const word p = line[x];
      const word of_two = two[x - 1] + two[x] + two[x + 1] + 4 * red_and_blue(p);
      const word of_one = one[x - 1] + one[x] + one[x + 1] + 4 * green(p);
      out[x] = enhanced(p, smoothed(of_two & 0xffff), smoothed(of_one), smoothed(of_two >> 16), factor);
    }
  }
}

// A line of pixels by the lines at(k) that are moved by k pixels, or lie k lines away
template <class At>
HRRL_INLINE void box_line(At at, word* __restrict to, int64_t count, const Box& box) {
  const word *const before = at(-box.reach - 1), *const after = at(box.reach + 1);
  const auto put = [&](int64_t x, word two, word one) {
    const word far_two = red_and_blue(before[x]) + red_and_blue(after[x]), far_one = green(before[x]) + green(after[x]);
    to[x] = pixel_of(boxed(two & 0xffff, far_two & 0xffff, box), boxed(one, far_one, box),
                     boxed(two >> 16, far_two >> 16, box));
  };
  const auto known = [&](auto reach) {
    for (int64_t x = 0; x < count; ++x) {
      word two = 0, one = 0;
      for (int k = -reach; k <= reach; ++k) {
        two += red_and_blue(at(k)[x]);
        one += green(at(k)[x]);
      }
      put(x, two, one);
    }
  };
  if (box.reach == 0) return known(std::integral_constant<int, 0>{});
  if (box.reach == 1) return known(std::integral_constant<int, 1>{});  // up to 2.1 pixels
  constexpr int64_t kPixels = 64;                                      // whose sums stay at hand
  for (int64_t begin = 0; begin < count; begin += kPixels) {
    const int64_t end = count - begin < kPixels ? count - begin : kPixels;
    word two[kPixels] = {}, one[kPixels] = {};
    for (int k = -box.reach; k <= box.reach; ++k) {
      const word* const line = at(k) + begin;
      for (int64_t x = 0; x < end; ++x) {
        two[x] += red_and_blue(line[x]);
        one[x] += green(line[x]);
      }
    }
    for (int64_t x = 0; x < end; ++x) put(begin + x, two[x], one[x]);
  }
}

static void box_rows(const Picture& from, word* to, const Box& box, double* lines) {
  const int64_t width = from.width, edge = box.reach + 1;
  word* const own = reinterpret_cast<word*>(lines) + edge;
  word* const made[] = {own, own + width + 2 * edge};
  for (int64_t y = 0; y < from.height; ++y) {
    for (int64_t x = 0; x < width; ++x) own[x] = from.pixels[y * width + x];
    for (int time = 0; time < 3; ++time) {
      word* const line = made[time % 2];
      for (int64_t k = 1; k <= edge; ++k) {
        line[-k] = line[0];
        line[width - 1 + k] = line[width - 1];
      }
      box_line([&](int k) { return line + k; }, time < 2 ? made[1 - time] : to + y * width, width, box);
    }
  }
}

static void box_columns(const Picture& from, word* to, const Box& box) {
  const int64_t width = from.width, last = from.height - 1;
  for (int64_t y = 0; y <= last; ++y)
    box_line(
        [&](int k) {
          const int64_t row = y + k < 0 ? 0 : y + k;
          return from.pixels + (row < last ? row : last) * width;
        },
        to + y * width, width, box);
}

}  // namespace hrrl::cpu::HRRL_ISA
