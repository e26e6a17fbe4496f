#include <torch/csrc/stable/library.h>

#include "common/dtype.h"
#include "cuda/launch.h"
#include "cuda/stream.h"
#include "info_nce.h"

namespace hrrl {

std::tuple<Tensor, Tensor> info_nce_cuda(const Tensor& query, const Tensor& key, const Tensor& queue,
                                         double temperature, bool with_grad) {
  const InfoNce n = prepare_info_nce(query, key, queue, temperature, with_grad);
  if (n.batch > 0) {
    const Tensor workspace =
        new_empty(n.query, {cuda::info_nce_workspace(n.batch, n.count, n.size, with_grad)}, n.query.scalar_type());
    const cuda::InfoNceParams params{n.query.data_ptr(),
                                     n.key.data_ptr(),
                                     n.queue.data_ptr(),
                                     n.loss.data_ptr(),
                                     with_grad ? n.grad_query.data_ptr() : nullptr,
                                     n.batch,
                                     n.count,
                                     n.size,
                                     temperature,
                                     workspace.data_ptr()};
    const CurrentStream stream(n.query);
    cuda::launch_info_nce(dtype_of(n.query), params, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {n.loss, n.grad_query};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) { m.impl("_info_nce", TORCH_BOX(&hrrl::info_nce_cuda)); }
