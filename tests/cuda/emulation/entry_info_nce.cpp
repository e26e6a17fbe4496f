// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/info_nce.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_info_nce(int dtype, const void* query, const void* key, const void* queue, void* loss,
                                        void* grad_query, int64_t batch, int64_t count, int64_t size,
                                        double temperature) {
  const Workspace workspace(cuda::info_nce_workspace(batch, count, size, grad_query != nullptr));
  cuda::launch_info_nce(static_cast<Dtype>(dtype),
                        {query, key, queue, loss, grad_query, batch, count, size, temperature, workspace.data()},
                        nullptr);
  return emulation::failure();
}
