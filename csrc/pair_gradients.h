// pair_gradients: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include "embeddings.h"

namespace hrrl {

// The gradient of sum_n weight_n s(image_row_n, caption_column_n). What is computed in is float, or double for double.
struct PairGradients {
  Tensor image, caption;            // [I, D], [C, D] floating, contiguous
  Tensor row, column;               // [N] int64, contiguous
  Tensor weight;                    // [N] of the type computed in, contiguous
  Tensor grad_image, grad_caption;  // [I, D], [C, D] of that type
  int64_t images, captions, size, pairs;
};

inline PairGradients prepare_pair_gradients(const Tensor& image, const Tensor& caption, const Tensor& row,
                                            const Tensor& column, const Tensor& weight) {
  constexpr const char* op = "pair_gradients: ";
  check_embeddings(op, image, caption);
  HRRL_CHECK(weight.dim() == 1, op, "weight must have shape [N], got ", shape(weight));
  const ScalarType computed = computed_type(image);
  HRRL_CHECK(weight.scalar_type() == computed, op, "weight must be float32, or float64 beside a float64 image");
  const Tensor* indices[] = {&row, &column};
  const char* names[] = {"row", "column"};
  for (int side = 0; side < 2; ++side) {
    HRRL_CHECK(same_shape(*indices[side], weight), op, names[side], " must have the shape of weight, ", shape(weight),
               ", got ", shape(*indices[side]));
    HRRL_CHECK(indices[side]->scalar_type() == ScalarType::Long, op, names[side], " must be int64; convert it");
  }
  for (const Tensor* t : {&row, &column, &weight})
    HRRL_CHECK(same_device(image, *t), op, "all arguments must be on the device of image");
  return {as_contiguous(image),
          as_contiguous(caption),
          as_contiguous(row),
          as_contiguous(column),
          as_contiguous(weight),
          new_empty(image, {image.size(0), image.size(1)}, computed),
          new_empty(image, {caption.size(0), image.size(1)}, computed),
          image.size(0),
          caption.size(0),
          image.size(1),
          weight.size(0)};
}

}  // namespace hrrl
