// hinge_coefficients: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include "embeddings.h"

namespace hrrl {

// sum_im v_m (b_i + s_im)+ + u_i (d_m + s_im)+ over different groups. What is computed in is float, or double for
// double.
struct HingeCoefficients {
  Tensor image, caption;                // [I, D], [C, D] floating, contiguous
  Tensor image_below, caption_below;    // b [I], d [C] of the type computed in, contiguous
  Tensor image_weight, caption_weight;  // u [I], v [C] of that type, contiguous
  Tensor image_group, caption_group;    // [I], [C] int64, contiguous
  Tensor loss, coefficient;             // [], [I, C] of that type
  Tensor of_image, of_caption;          // [I], [C] of that type
  int64_t images, captions, size;
};

inline HingeCoefficients prepare_hinge_coefficients(const Tensor& image, const Tensor& caption,
                                                    const Tensor& image_below, const Tensor& caption_below,
                                                    const Tensor& image_weight, const Tensor& caption_weight,
                                                    const Tensor& image_group, const Tensor& caption_group) {
  constexpr const char* op = "hinge_coefficients: ";
  check_embeddings(op, image, caption);
  const ScalarType computed = computed_type(image);
  check_per_row(op, "image", "_below", image, image_below, computed);
  check_per_row(op, "caption", "_below", caption, caption_below, computed);
  check_per_row(op, "image", "_weight", image, image_weight, computed);
  check_per_row(op, "caption", "_weight", caption, caption_weight, computed);
  check_per_row(op, "image", "_group", image, image_group, ScalarType::Long);
  check_per_row(op, "caption", "_group", caption, caption_group, ScalarType::Long);
  const int64_t images = image.size(0), captions = caption.size(0);
  return {as_contiguous(image),
          as_contiguous(caption),
          as_contiguous(image_below),
          as_contiguous(caption_below),
          as_contiguous(image_weight),
          as_contiguous(caption_weight),
          as_contiguous(image_group),
          as_contiguous(caption_group),
          new_empty(image, {}, computed),
          new_empty(image, {images, captions}, computed),
          new_empty(image, {images}, computed),
          new_empty(image, {captions}, computed),
          images,
          captions,
          image.size(1)};
}

}  // namespace hrrl
