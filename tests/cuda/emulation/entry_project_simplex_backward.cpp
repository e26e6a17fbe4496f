// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/project_simplex_backward.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_project_simplex_backward(int dtype, const void* p, const void* grad, void* out,
                                                        int64_t rows, int64_t size) {
  const auto type = static_cast<Dtype>(dtype);
  cuda::ProjectSimplexBackwardParams params{p, grad, out, rows, size, nullptr};
  const Workspace workspace(cuda::project_simplex_backward_workspace(type, params));
  params.workspace = workspace.data();
  cuda::launch_project_simplex_backward(type, params, nullptr);
  return emulation::failure();
}
