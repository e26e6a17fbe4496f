// The operations of mix_chains by number, and what is known of a batch of images, without torch or CUDA.
// hrrl_ext/ops/image_operations.py has the same order, and says what each of them computes.
#pragma once

#include <cstdint>

namespace hrrl {

enum ImageOperation : int64_t {
  kNothing = -1,
  kAutocontrast,
  kEqualize,
  kPosterize,
  kSolarize,
  kAffine,
  kBrightness,
  kContrast,
  kColor,
  kSharpness,
  kCrop,
  kHue,
  kBlur,
  kImageOperations,
};

constexpr int64_t kImageParameters = 6;  // of an operation
constexpr int kMostBlur = 64;            // pixels of a Gaussian

enum class ImageType { kLevels, kFloat, kDouble, kHalf, kBFloat16 };  // kLevels: uint8

// A batch, where each image has `chains` chains of `steps` operations
struct ImageProgram {
  const int64_t* operation;   // [B, W, D]
  const double* parameter;    // [B, W, D, 6]
  const float *weight, *mix;  // [B, W], [B]
  int64_t chains, steps;
};

struct ImageShape {
  int64_t channels, height, width;
  int64_t of_batch, of_channel, of_row, of_column;  // strides of the images and of the result
};

}  // namespace hrrl
