// hardest_negatives: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include "common/tensor.h"

namespace hrrl {

// Of every image the caption of another group with the highest score, and of every caption the image.
struct HardestNegatives {
  Tensor image, caption;              // [I, D], [C, D] floating, contiguous
  Tensor image_group, caption_group;  // [I], [C] int64, contiguous
  Tensor caption_index, image_index;  // [I], [C] int64
  Tensor caption_score, image_score;  // [I], [C] float, or double for double
  int64_t images, captions, size;
};

inline HardestNegatives prepare_hardest_negatives(const Tensor& image, const Tensor& caption, const Tensor& image_group,
                                                  const Tensor& caption_group) {
  constexpr const char* op = "hardest_negatives: ";
  HRRL_CHECK(image.dim() == 2, op, "image must have shape [I, D], got ", shape(image));
  HRRL_CHECK(is_floating(image), op, "image must be a floating-point tensor");
  HRRL_CHECK(caption.dim() == 2 && caption.size(1) == image.size(1), op, "caption must have shape [C, ", image.size(1),
             "], as many columns as image, got ", shape(caption));
  HRRL_CHECK(caption.scalar_type() == image.scalar_type(), op,
             "caption must have the dtype of image; convert one of them");
  HRRL_CHECK(same_device(image, caption), op, "caption must be on the device of image");
  const Tensor *rows[] = {&image, &caption}, *groups[] = {&image_group, &caption_group};
  const char* names[] = {"image", "caption"};
  for (int side = 0; side < 2; ++side) {
    HRRL_CHECK(groups[side]->dim() == 1 && groups[side]->size(0) == rows[side]->size(0), op, names[side],
               "_group must have shape [", rows[side]->size(0), "], one value per row of ", names[side], ", got ",
               shape(*groups[side]));
    HRRL_CHECK(groups[side]->scalar_type() == ScalarType::Long, op, names[side], "_group must be int64; convert it");
    HRRL_CHECK(same_device(image, *groups[side]), op, names[side], "_group must be on the device of image");
  }
  const int64_t images = image.size(0), captions = caption.size(0);
  const ScalarType score = image.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return {as_contiguous(image),
          as_contiguous(caption),
          as_contiguous(image_group),
          as_contiguous(caption_group),
          new_empty(image, {images}, ScalarType::Long),
          new_empty(image, {captions}, ScalarType::Long),
          new_empty(image, {images}, score),
          new_empty(image, {captions}, score),
          images,
          captions,
          image.size(1)};
}

}  // namespace hrrl
