// What every operator on embeddings of images and captions asks of them.
#pragma once

#include "common/tensor.h"

namespace hrrl {

// image [I, D] and caption [C, D], floating, of one dtype, on one device.
inline void check_embeddings(const char* op, const Tensor& image, const Tensor& caption) {
  HRRL_CHECK(image.dim() == 2, op, "image must have shape [I, D], got ", shape(image));
  HRRL_CHECK(is_floating(image), op, "image must be a floating-point tensor");
  HRRL_CHECK(caption.dim() == 2 && caption.size(1) == image.size(1), op, "caption must have shape [C, ", image.size(1),
             "], as many columns as image, got ", shape(caption));
  HRRL_CHECK(caption.scalar_type() == image.scalar_type(), op,
             "caption must have the dtype of image; convert one of them");
  HRRL_CHECK(same_device(image, caption), op, "caption must be on the device of image");
}

// One value for each row of ``rows``, which are those of ``side``: of type, or of the one computed in.
inline void check_per_row(const char* op, const char* side, const char* what, const Tensor& rows, const Tensor& t,
                          ScalarType type) {
  HRRL_CHECK(t.dim() == 1 && t.size(0) == rows.size(0), op, side, what, " must have shape [", rows.size(0),
             "], one value per row of ", side, ", got ", shape(t));
  HRRL_CHECK(
      t.scalar_type() == type, op, side, what,
      type == ScalarType::Long ? " must be int64; convert it" : " must be float32, or float64 beside a float64 image");
  HRRL_CHECK(same_device(rows, t), op, side, what, " must be on the device of image");
}

}  // namespace hrrl
