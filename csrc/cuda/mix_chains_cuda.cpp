#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "cuda/stream.h"
#include "mix_chains.h"

namespace hrrl {

Tensor mix_chains_cuda(const Tensor& images, const Tensor& operation, const Tensor& parameter, const Tensor& weight,
                       const Tensor& mix) {
  const MixChains m = prepare_mix_chains(images, operation, parameter, weight, mix);
  const CurrentStream stream(m.images);  // before the workspace: its size depends on the device
  const int64_t batch = m.images.size(0), doubles = cuda::mix_chains_doubles(m.type, m.shape);
  const Tensor workspace = new_empty(m.images, {cuda::mix_chains_workspace(batch, doubles)}, ScalarType::Double);
  cuda::launch_mix_chains(m.type,
                          {m.shape, m.program, m.images.data_ptr(), m.out.data_ptr(), batch, doubles,
                           static_cast<double*>(workspace.data_ptr())},
                          stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return m.out;
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) { m.impl("mix_chains", TORCH_BOX(&hrrl::mix_chains_cuda)); }
