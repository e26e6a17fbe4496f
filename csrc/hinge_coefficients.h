// hinge_coefficients: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include "common/tensor.h"

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
  HRRL_CHECK(image.dim() == 2, op, "image must have shape [I, D], got ", shape(image));
  HRRL_CHECK(is_floating(image), op, "image must be a floating-point tensor");
  HRRL_CHECK(caption.dim() == 2 && caption.size(1) == image.size(1), op, "caption must have shape [C, ", image.size(1),
             "], as many columns as image, got ", shape(caption));
  HRRL_CHECK(caption.scalar_type() == image.scalar_type(), op,
             "caption must have the dtype of image; convert one of them");
  HRRL_CHECK(same_device(image, caption), op, "caption must be on the device of image");
  const ScalarType computed = image.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const struct {
    const char *side, *what;
    const Tensor &rows, &t;
    ScalarType type;
  } arguments[] = {{"image", "_below", image, image_below, computed},
                   {"caption", "_below", caption, caption_below, computed},
                   {"image", "_weight", image, image_weight, computed},
                   {"caption", "_weight", caption, caption_weight, computed},
                   {"image", "_group", image, image_group, ScalarType::Long},
                   {"caption", "_group", caption, caption_group, ScalarType::Long}};
  for (const auto& a : arguments) {
    HRRL_CHECK(a.t.dim() == 1 && a.t.size(0) == a.rows.size(0), op, a.side, a.what, " must have shape [",
               a.rows.size(0), "], one value per row of ", a.side, ", got ", shape(a.t));
    HRRL_CHECK(a.t.scalar_type() == a.type, op, a.side, a.what,
               a.type == ScalarType::Long ? " must be int64; convert it"
                                          : " must be float32, or float64 beside a float64 image");
    HRRL_CHECK(same_device(image, a.t), op, a.side, a.what, " must be on the device of image");
  }
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
