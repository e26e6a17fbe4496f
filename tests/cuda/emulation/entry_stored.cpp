// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/stored.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

static StoredImages images_of(const int64_t* sides, int64_t padding, int64_t resolution, int signs) {
  return stored_images(sides[1], sides[2], sides[3], padding, resolution, signs != 0);
}

extern "C" const char* emulate_perturb_stored(int dtype, const int64_t* sides, const int64_t* strides, const void* x,
                                              void* out, const void* values, const float* scale, const int64_t* row,
                                              const int64_t* view, double tau, int64_t padding, int64_t resolution,
                                              int signs, int64_t count) {
  cuda::launch_perturb_stored(static_cast<Dtype>(dtype),
                              {images_of(sides, padding, resolution, signs), x, out, strides[0], strides[1], strides[2],
                               strides[3], values, scale, row, view, tau, sides[0], count},
                              nullptr);
  return emulation::failure();
}

extern "C" const char* emulate_store_directions(int dtype, const int64_t* sides, const int64_t* strides,
                                                const void* grad, void* values, float* scale, const int64_t* row,
                                                const int64_t* view, int64_t padding, int64_t resolution, int signs,
                                                int64_t count) {
  cuda::launch_store_directions(static_cast<Dtype>(dtype),
                                {images_of(sides, padding, resolution, signs), grad, strides[0], strides[1], strides[2],
                                 strides[3], values, scale, row, view, sides[0], count},
                                nullptr);
  return emulation::failure();
}
