// What an operation of mix_chains makes of one pixel, a word of three 8-bit levels from the lowest byte on: shared by
// the CPU's lines and a GPU's threads. hrrl_ext/ops/image_operations.py is the specification; products and sums are
// rounded one by one as there, so whatever includes this is compiled without contraction.
//
// Compiled once per instruction set, like the kernels: functions are static.
#pragma once

#include <math.h>

#include <cstdint>

#include "common/image_program.h"

#ifdef __CUDACC__
#define HRRL_PIXEL static __device__ __forceinline__
#else
#define HRRL_PIXEL [[maybe_unused]] static inline __attribute__((always_inline))
#endif

namespace hrrl::pixels {

using word = uint32_t;

HRRL_PIXEL int channel(word pixel, int c) { return static_cast<int>((pixel >> (8 * c)) & 255); }
HRRL_PIXEL word pixel_of(int red, int green, int blue) {
  return static_cast<word>(red) | static_cast<word>(green) << 8 | static_cast<word>(blue) << 16;
}
HRRL_PIXEL double within(double v, double low, double high) {  // NaN is low
  v = v > low ? v : low;
  return v < high ? v : high;
}
HRRL_PIXEL float level_within(float v) {
  v = v > 0.0f ? v : 0.0f;
  return v < 255.0f ? v : 255.0f;
}
// Of 0 .. 255, ties to even: adding 1.5 * 2^23, or 2^52, leaves no room for a fraction.
HRRL_PIXEL float rounded(float v) { return (v + 12582912.0f) - 12582912.0f; }
HRRL_PIXEL double rounded(double v) { return (v + 6755399441055744.0) - 6755399441055744.0; }

// ---------------------------------------------------------------------------------------------------------------------
// Levels

HRRL_PIXEL int autocontrasted(int level, int low, int high) {
  if (low == high) return level;
  const double scale = 255.0 / (high - low);
  return static_cast<int>(within(level * scale - low * scale, 0.0, 255.0));
}
HRRL_PIXEL int equalized(int level, int64_t below, int64_t step) {  // below: pixels with lower levels
  if (step == 0) return level;
  const int64_t equal = (step / 2 + below) / step;
  return static_cast<int>(equal < 255 ? equal : 255);
}
HRRL_PIXEL int posterized(int level, double bits) {
  const int gone = 8 - static_cast<int>(within(bits, 0.0, 8.0));
  return level >> gone << gone;
}
HRRL_PIXEL int solarized(int level, double threshold) { return level >= threshold ? 255 - level : level; }

// Moved away from the degenerate level, cut off
HRRL_PIXEL int enhanced(int level, float degenerate, float factor) {
  const float away = (static_cast<float>(level) - degenerate) * factor;
  return static_cast<int>(level_within(degenerate + away));
}
HRRL_PIXEL word enhanced(word pixel, float red, float green, float blue, float factor) {
  return pixel_of(enhanced(channel(pixel, 0), red, factor), enhanced(channel(pixel, 1), green, factor),
                  enhanced(channel(pixel, 2), blue, factor));
}
HRRL_PIXEL int grey_of(word pixel) {
  return (19595 * channel(pixel, 0) + 38470 * channel(pixel, 1) + 7471 * channel(pixel, 2) + 32768) >> 16;
}
HRRL_PIXEL int64_t rounded_mean(int64_t sum, int64_t count) { return (2 * sum + count) / (2 * count); }
HRRL_PIXEL word coloured(word pixel, float factor) {
  const auto grey = static_cast<float>(grey_of(pixel));
  return enhanced(pixel, grey, grey, grey, factor);
}
// Of the weighted sum of nine levels, at most 13 * 255: (2 sum + 13) / 26
HRRL_PIXEL float smoothed(word sum) { return static_cast<float>(((2 * sum + 13) * 40330u) >> 20); }

// Whole 255ths of the colour circle, cut off
HRRL_PIXEL int hue_steps(double turn) { return static_cast<int>(within(turn * 255, -255.0, 255.0)) & 255; }
// In HSV of 8 bits: as Pillow rounds to it, and back
HRRL_PIXEL word turned(word pixel, int steps) {
  const int red = channel(pixel, 0), green = channel(pixel, 1), blue = channel(pixel, 2);
  const int larger = red > green ? red : green, value = larger > blue ? larger : blue;
  const int smaller = red < green ? red : green, chroma = value - (smaller < blue ? smaller : blue);
  const auto per = static_cast<float>(chroma > 1 ? chroma : 1);
  const double of_red = static_cast<float>(value - red) / per, of_green = static_cast<float>(value - green) / per,
               of_blue = static_cast<float>(value - blue) / per;
  const double sextant = value == red     ? of_blue - of_green
                         : value == green ? 2.0 + of_red - of_blue
                                          : 4.0 + of_green - of_red;
  const double turn = static_cast<double>(static_cast<float>(sextant)) * (1.0 / 6) + 1.0;
  const auto rest = static_cast<float>(turn < 1.0 ? turn : turn - 1.0);
  const int hue = (static_cast<int>(rest * 255.0f) + steps) & 255;
  const float of_value = static_cast<float>(chroma) / static_cast<float>(value > 1 ? value : 1);
  const int saturation = static_cast<int>(of_value * 255.0f);
  constexpr word kOne = 255 * 255;
  int level[3];
  for (int c = 0; c < 3; ++c) {
    int place = 6 * hue + 255 * (5 - 2 * c);
    place = place < 6 * 255 ? place : place - 6 * 255;
    const int other = 4 * 255 - place, least = place < other ? place : other;
    const int share = least > 0 ? least < 255 ? least : 255 : 0;
    const word rest_of_one = kOne - static_cast<word>(saturation * share);
    level[c] = static_cast<int>((2 * static_cast<word>(value) * rest_of_one + kOne) / (2 * kOne));
  }
  return pixel_of(level[0], level[1], level[2]);
}

// A box in fixed point: 2 reach + 1 pixels weigh `near`, and one more on either side `far`, in units of 2^-24.
struct Box {
  int reach;
  word near, far;
};
// Three of them have the variance of a Gaussian of so many pixels (Gwosdek et al., 2011).
HRRL_PIXEL Box box_of(double gaussian) {
  const auto sigma = static_cast<float>(within(gaussian, 0.0, kMostBlur));
  const float variance = sigma * sigma / 3.0f;
  const auto length = static_cast<float>(sqrt(12.0 * static_cast<double>(variance) + 1.0));
  const float whole = floorf((length - 1.0f) / 2.0f), next = whole + 1.0f;
  const float part = (2.0f * whole + 1.0f) * (whole * next - 3.0f * variance);
  const float radius = whole + part / (6.0f * (variance - next * next));
  Box box;
  box.reach = static_cast<int>(radius);
  box.near = static_cast<word>(16777216.0f / (2.0f * radius + 1.0f));
  box.far = (16777216u - static_cast<word>(2 * box.reach + 1) * box.near) / 2;
  return box;
}
// Sums of levels: of up to 63 + 1 + 63 near ones, and of both far ones
HRRL_PIXEL int boxed(word near, word far, const Box& box) {
  return static_cast<int>((near * box.near + far * box.far + (1u << 23)) >> 24);
}
// Two sums in a word, of red and blue: they stay apart up to 257 levels. Green has one of its own.
constexpr word kRedAndBlue = 0x00ff00ffu;

// ---------------------------------------------------------------------------------------------------------------------
// Places

// Along one side: between the pixels `first` and `second`, so far from the first
struct Place {
  int32_t first, second;
  float share;
};

// The centre of pixel i lies at i + 0.5. Half a pixel beyond a centre at the edge there is nothing to go to, and the
// pixel goes on; what lies further out is at the edge, too, and not inside().
HRRL_PIXEL double nearest_inside(double place, double size) { return within(place, 0.0, size * 0x1.fffffffffffffp-1); }
HRRL_PIXEL bool inside(double place, double size) { return nearest_inside(place, size) == place; }
HRRL_PIXEL Place placed(double place, int32_t size) {
  const double from = nearest_inside(place, size) + 0.5;
  const auto number = static_cast<int32_t>(from);
  return {number > 0 ? number - 1 : 0, number < size - 1 ? number : size - 1, static_cast<float>(from - number)};
}

// A part of one side, enlarged to the whole: where it begins, how long it is, and how much of it a new pixel is
struct Part {
  double first, length, per;
};
HRRL_PIXEL Part part_of(double begin, double length, double size) {
  Part part;
  part.first = floor(within(begin, 0.0, size - 1));
  part.length = within(floor(length), 1.0, size - part.first);
  part.per = part.length / size;
  return part;
}
HRRL_PIXEL Place placed(int32_t pixel, const Part& part) {
  const double place = within((pixel + 0.5) * part.per - 0.5, 0.0, part.length - 1);
  const auto below = static_cast<int32_t>(place), first = static_cast<int32_t>(part.first);
  return {first + below, first + (below + 1 < part.length ? below + 1 : below), static_cast<float>(place - below)};
}

HRRL_PIXEL float between(float a, float b, float share) { return a + (b - a) * share; }

// Between four pixels; half is 0.5 to be rounded, 0 to be cut off
HRRL_PIXEL word between(word a, word b, word c, word d, float across, float down, float half) {
  int level[3];
  for (int k = 0; k < 3; ++k) {
    const float above = between(static_cast<float>(channel(a, k)), static_cast<float>(channel(b, k)), across);
    const float below = between(static_cast<float>(channel(c, k)), static_cast<float>(channel(d, k)), across);
    level[k] = static_cast<int>(between(above, below, down) + half);
  }
  return pixel_of(level[0], level[1], level[2]);
}

}  // namespace hrrl::pixels
