// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/pair_gradients.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_pair_gradients(int dtype, int computed, const void* image, const void* caption,
                                              const int64_t* row, const int64_t* column, const void* weight,
                                              void* grad_image, void* grad_caption, int64_t images, int64_t captions,
                                              int64_t size, int64_t pairs, bool order) {
  const Workspace scale(pairs);
  const auto type = static_cast<Dtype>(computed);
  cuda::launch_pair_gradients(static_cast<Dtype>(dtype),
                              {image,
                               caption,
                               row,
                               column,
                               {weight, type},
                               {grad_image, type},
                               {grad_caption, type},
                               images,
                               captions,
                               size,
                               pairs,
                               order,
                               scale.data()},
                              nullptr);
  return emulation::failure();
}
