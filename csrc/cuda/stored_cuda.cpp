#include <torch/csrc/stable/library.h>

#include "common/dtype.h"
#include "cuda/launch.h"
#include "cuda/stream.h"
#include "stored.h"

namespace hrrl {

Tensor perturb_stored_cuda(const Tensor& x, const Tensor& values, const Tensor& scale, const Tensor& row,
                           const Tensor& view, double tau, int64_t padding, int64_t resolution) {
  const PerturbStored p = prepare_perturb_stored(x, values, scale, row, view, tau, padding, resolution);
  const Stored& s = p.stored;
  const cuda::PerturbStoredParams params{s.images,
                                         p.x.data_ptr(),
                                         p.out.data_ptr(),
                                         p.out.stride(0),
                                         p.out.stride(1),
                                         p.out.stride(2),
                                         p.out.stride(3),
                                         s.values.data_ptr(),
                                         static_cast<const float*>(s.scale.data_ptr()),
                                         static_cast<const int64_t*>(s.row.data_ptr()),
                                         static_cast<const int64_t*>(s.view.data_ptr()),
                                         tau,
                                         p.x.size(0),
                                         s.values.size(0)};
  const CurrentStream stream(p.x);
  cuda::launch_perturb_stored(dtype_of(p.x), params, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return p.out;
}

void store_directions_cuda(const Tensor& values, const Tensor& scale, const Tensor& grad, const Tensor& row,
                           const Tensor& view, int64_t padding, int64_t resolution) {
  const StoreDirections p = prepare_store_directions(values, scale, grad, row, view, padding, resolution);
  const Stored& s = p.stored;
  const cuda::StoreDirectionsParams params{s.images,
                                           p.grad.data_ptr(),
                                           p.grad.stride(0),
                                           p.grad.stride(1),
                                           p.grad.stride(2),
                                           p.grad.stride(3),
                                           s.values.data_ptr(),
                                           static_cast<float*>(s.scale.data_ptr()),
                                           static_cast<const int64_t*>(s.row.data_ptr()),
                                           static_cast<const int64_t*>(s.view.data_ptr()),
                                           p.grad.size(0),
                                           s.values.size(0)};
  const CurrentStream stream(p.grad);
  cuda::launch_store_directions(dtype_of(p.grad), params, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CUDA, m) {
  m.impl("perturb_stored", TORCH_BOX(&hrrl::perturb_stored_cuda));
  m.impl("store_directions", TORCH_BOX(&hrrl::store_directions_cuda));
}
