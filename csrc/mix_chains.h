// mix_chains: checks and allocation, shared by the CPU and the CUDA implementation.
#pragma once

#include "common/image_program.h"
#include "common/tensor.h"

namespace hrrl {

struct MixChains {
  Tensor images, out;                        // equal strides
  Tensor operation, parameter, weight, mix;  // contiguous
  ImageType type;
  ImageShape shape;
  ImageProgram program;
};

inline MixChains prepare_mix_chains(const Tensor& images, const Tensor& operation, const Tensor& parameter,
                                    const Tensor& weight, const Tensor& mix) {
  constexpr const char* op = "mix_chains: ";
  constexpr int64_t kMostPixels = 1 << 28;
  HRRL_CHECK(images.dim() == 4 && (images.size(1) == 1 || images.size(1) == 3), op,
             "images must be [B, C, H, W] of one channel or three, got ", shape(images));
  HRRL_CHECK(images.scalar_type() == ScalarType::Byte || is_floating(images), op,
             "images must be uint8, or float in [0, 1]; convert them");
  HRRL_CHECK(images.size(2) * images.size(3) <= kMostPixels, op, "images must be smaller, got ", shape(images));
  const int64_t batch = images.size(0);
  HRRL_CHECK(operation.dim() == 3 && operation.size(0) == batch && operation.scalar_type() == ScalarType::Long, op,
             "operation must be int64 [", batch, ", W, D], W chains of D operations for each image, got ",
             shape(operation));
  const int64_t chains = operation.size(1), steps = operation.size(2);
  HRRL_CHECK(parameter.dim() == 4 && parameter.size(0) == batch && parameter.size(1) == chains &&
                 parameter.size(2) == steps && parameter.size(3) == kImageParameters &&
                 parameter.scalar_type() == ScalarType::Double,
             op, "parameter must be float64 [", batch, ", ", chains, ", ", steps, ", ", kImageParameters,
             "], for each operation, got ", shape(parameter));
  HRRL_CHECK(weight.dim() == 2 && weight.size(0) == batch && weight.size(1) == chains &&
                 weight.scalar_type() == ScalarType::Float,
             op, "weight must be float32 [", batch, ", ", chains, "], one for each chain, got ", shape(weight));
  HRRL_CHECK(mix.dim() == 1 && mix.size(0) == batch && mix.scalar_type() == ScalarType::Float, op,
             "mix must be float32 [", batch, "], one for each image, got ", shape(mix));
  const Tensor* all[] = {&operation, &parameter, &weight, &mix};
  const char* names[] = {"operation", "parameter", "weight", "mix"};
  for (int i = 0; i < 4; ++i)
    HRRL_CHECK(same_device(images, *all[i]), op, names[i], " must be on the device of the images");

  ImageType type = ImageType::kFloat;
  if (images.scalar_type() == ScalarType::Byte) type = ImageType::kLevels;
  if (images.scalar_type() == ScalarType::Double) type = ImageType::kDouble;
  if (images.scalar_type() == ScalarType::Half) type = ImageType::kHalf;
  if (images.scalar_type() == ScalarType::BFloat16) type = ImageType::kBFloat16;
  const Tensor out = new_like(images);  // dense; the strides of the images where they are
  MixChains m{laid_out_as(out, images),
              out,
              as_contiguous(operation),
              as_contiguous(parameter),
              as_contiguous(weight),
              as_contiguous(mix),
              type,
              {},
              {}};
  m.shape = {images.size(1), images.size(2), images.size(3), out.stride(0),
             out.stride(1),  out.stride(2),  out.stride(3)};
  m.program = {static_cast<const int64_t*>(m.operation.data_ptr()),
               static_cast<const double*>(m.parameter.data_ptr()),
               static_cast<const float*>(m.weight.data_ptr()),
               static_cast<const float*>(m.mix.data_ptr()),
               chains,
               steps};
  return m;
}

}  // namespace hrrl
