// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/mix_chains.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_mix_chains(int type, const int64_t* sides, const int64_t* strides, const void* images,
                                          void* out, const int64_t* operation, const double* parameter,
                                          const float* weight, const float* mix, int64_t chains, int64_t steps) {
  const auto kind = static_cast<ImageType>(type);
  const ImageShape shape{sides[1], sides[2], sides[3], strides[0], strides[1], strides[2], strides[3]};
  const int64_t doubles = cuda::mix_chains_doubles(kind, shape);
  const Workspace workspace(cuda::mix_chains_workspace(sides[0], doubles));
  cuda::launch_mix_chains(
      kind,
      {shape, {operation, parameter, weight, mix, chains, steps}, images, out, sides[0], doubles, workspace.data()},
      nullptr);
  return emulation::failure();
}
