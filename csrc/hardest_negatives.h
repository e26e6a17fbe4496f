// hardest_negatives: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include "embeddings.h"

namespace hrrl {

// Of every image the caption of another group with the highest score, and of every caption the image.
struct HardestNegatives {
  Tensor image, caption;              // [I, D], [C, D] floating, contiguous
  Tensor image_group, caption_group;  // [I], [C] int64, contiguous
  Tensor caption_index, image_index;  // [I], [C] int64
  Tensor caption_score, image_score;  // [I], [C] float, or double for double
  int64_t images, captions, size;
};

inline HardestNegatives prepare_hardest_negatives(const char* op, const Tensor& image, const Tensor& caption,
                                                  const Tensor& image_group, const Tensor& caption_group) {
  check_embeddings(op, image, caption);
  check_per_row(op, "image", "_group", image, image_group, ScalarType::Long);
  check_per_row(op, "caption", "_group", caption, caption_group, ScalarType::Long);
  const int64_t images = image.size(0), captions = caption.size(0);
  const ScalarType score = computed_type(image);
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
