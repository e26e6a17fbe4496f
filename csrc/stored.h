// perturb_stored and store_directions: checks and allocation, shared by the CPU and the CUDA implementation.
//
// A row of values is z_i [C, h, w] in the coordinates of image i, h = ceil(H/r) and w = ceil(W/r): bytes in units of
// the row's scale, or packed signs, value p in bit p % 8 of byte p / 8.
#pragma once

#include <cmath>
#include <limits>

#include "common/stored_images.h"
#include "common/tensor.h"

namespace hrrl {

struct Stored {
  StoredImages images;
  Tensor values, scale;  // [N, bytes] int8 or uint8, [N] float: the caller's own memory
  Tensor row, view;      // [B], [B, 3] int64, contiguous
};

inline Stored prepare_stored(const char* op, const Tensor& images, const Tensor& values, const Tensor& scale,
                             const Tensor& row, const Tensor& view, int64_t padding, int64_t resolution) {
  constexpr int64_t kMost = 1 << 20;  // of a side: sums of offsets stay far from the ends of int
  HRRL_CHECK(images.dim() == 4, op, "images must have shape [B, C, H, W], got ", shape(images));
  HRRL_CHECK(is_floating(images), op, "images must be float16, bfloat16, float32 or float64; convert them");
  const int64_t batch = images.size(0);
  HRRL_CHECK(padding >= 0 && padding <= kMost, op, "padding must be a number of pixels, got ", padding);
  HRRL_CHECK(resolution >= 1 && resolution <= kMost, op, "resolution must be at least 1 pixel, got ", resolution);
  HRRL_CHECK(images.size(2) <= kMost && images.size(3) <= kMost, op, "images must be smaller, got ", shape(images));
  HRRL_CHECK(images.size(1) * images.size(2) * images.size(3) <= std::numeric_limits<int32_t>::max(), op,
             "an image must have fewer values, got ", shape(images));
  const StoredImages of = stored_images(images.size(1), images.size(2), images.size(3), padding, resolution,
                                        values.scalar_type() == ScalarType::Byte);
  HRRL_CHECK(values.scalar_type() == ScalarType::Char || of.signs, op,
             "values must be int8, or uint8 for packed signs");
  HRRL_CHECK(values.dim() == 2 && values.size(1) == of.bytes, op, "values must have shape [N, ", of.bytes,
             "] for images ", shape(images), " at resolution ", resolution, ", got ", shape(values));
  HRRL_CHECK(values.is_contiguous(), op, "values must be contiguous");
  HRRL_CHECK(scale.dim() == 1 && scale.size(0) == values.size(0) && scale.scalar_type() == ScalarType::Float &&
                 scale.is_contiguous(),
             op, "scale must be float32 [", values.size(0), "], one for each row of values, got ", shape(scale));
  HRRL_CHECK(row.dim() == 1 && row.size(0) == batch && row.scalar_type() == ScalarType::Long, op, "row must be int64 [",
             batch, "], the row of each image, got ", shape(row));
  HRRL_CHECK(view.dim() == 2 && view.size(0) == batch && view.size(1) == 3 && view.scalar_type() == ScalarType::Long,
             op, "view must be int64 [", batch, ", 3]: top, left and flip of each image, got ", shape(view));
  const Tensor* all[] = {&values, &scale, &row, &view};
  const char* names[] = {"values", "scale", "row", "view"};
  for (int i = 0; i < 4; ++i)
    HRRL_CHECK(same_device(images, *all[i]), op, names[i], " must be on the device of the images");
  return {of, values, scale, as_contiguous(row), as_contiguous(view)};
}

// Of the strides of a tensor, a kernel takes those of channel, row and column.
struct PerturbStored {
  Stored stored;
  Tensor x, out;  // equal strides
};

inline PerturbStored prepare_perturb_stored(const Tensor& x, const Tensor& values, const Tensor& scale,
                                            const Tensor& row, const Tensor& view, double tau, int64_t padding,
                                            int64_t resolution) {
  constexpr const char* op = "perturb_stored: ";
  HRRL_CHECK(std::isfinite(tau), op, "tau must be finite, got ", tau);
  Stored stored = prepare_stored(op, x, values, scale, row, view, padding, resolution);
  const Tensor out = new_like(x);  // dense; the strides of x where x is dense
  return {std::move(stored), laid_out_as(out, x), out};
}

struct StoreDirections {
  Stored stored;
  Tensor grad;
};

inline StoreDirections prepare_store_directions(const Tensor& values, const Tensor& scale, const Tensor& grad,
                                                const Tensor& row, const Tensor& view, int64_t padding,
                                                int64_t resolution) {
  return {prepare_stored("store_directions: ", grad, values, scale, row, view, padding, resolution), grad};
}

}  // namespace hrrl
