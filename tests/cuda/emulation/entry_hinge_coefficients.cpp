// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/hinge_coefficients.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_hinge_coefficients(int dtype, int computed, const void* image, const void* caption,
                                                  const void* image_below, const void* caption_below,
                                                  const void* image_weight, const void* caption_weight,
                                                  const int64_t* image_group, const int64_t* caption_group, void* loss,
                                                  void* coefficient, void* of_image, void* of_caption, int64_t images,
                                                  int64_t captions, int64_t size) {
  const Workspace sums(cuda::hinge_workspace(images, captions));
  const auto type = static_cast<Dtype>(computed);
  cuda::launch_hinge_coefficients(static_cast<Dtype>(dtype),
                                  {image,
                                   caption,
                                   image_group,
                                   caption_group,
                                   {image_below, type},
                                   {caption_below, type},
                                   {image_weight, type},
                                   {caption_weight, type},
                                   {loss, type},
                                   {coefficient, type},
                                   {of_image, type},
                                   {of_caption, type},
                                   images,
                                   captions,
                                   size,
                                   sums.data()},
                                  nullptr);
  return emulation::failure();
}
