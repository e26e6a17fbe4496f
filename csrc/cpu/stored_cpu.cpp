#include <torch/csrc/stable/library.h>

#include <vector>

#include "cpu/dtype.h"
#include "stored.h"

namespace hrrl {

// Before anything is read or written.
static const int64_t* checked_rows(const char* op, const Stored& stored) {
  const auto* row = static_cast<const int64_t*>(stored.row.data_ptr());
  const int64_t count = stored.values.size(0);
  for (int64_t i = 0; i < stored.row.size(0); ++i)
    if (row[i] < 0 || row[i] >= count)
      fail<std::out_of_range>(op, "row must lie in 0 .. ", count - 1, ", got ", row[i], " at ", i);
  return row;
}

static int64_t values_of(const StoredImages& of) { return of.channels * of.height * of.width; }

Tensor perturb_stored_cpu(const Tensor& x, const Tensor& values, const Tensor& scale, const Tensor& row,
                          const Tensor& view, double tau, int64_t padding, int64_t resolution) {
  const PerturbStored p = prepare_perturb_stored(x, values, scale, row, view, tau, padding, resolution);
  const Stored& s = p.stored;
  const cpu::PerturbStoredArgs args{s.images,
                                    p.x.data_ptr(),
                                    p.out.data_ptr(),
                                    p.out.stride(0),
                                    p.out.stride(1),
                                    p.out.stride(2),
                                    p.out.stride(3),
                                    s.values.data_ptr(),
                                    static_cast<const float*>(s.scale.data_ptr()),
                                    checked_rows("perturb_stored: ", s),
                                    static_cast<const int64_t*>(s.view.data_ptr()),
                                    tau};
  const cpu::Dtype dtype = cpu::dtype_of(p.x);
  const auto kernel = cpu::kernels().perturb_stored;
  cpu::parallel_rows(p.x.size(0), values_of(s.images),
                     [&](int64_t begin, int64_t end) { kernel(dtype, args, begin, end); });
  return p.out;
}

void store_directions_cpu(const Tensor& values, const Tensor& scale, const Tensor& grad, const Tensor& row,
                          const Tensor& view, int64_t padding, int64_t resolution) {
  const StoreDirections p = prepare_store_directions(values, scale, grad, row, view, padding, resolution);
  const Stored& s = p.stored;
  const cpu::StoreDirectionsArgs args{s.images,
                                      p.grad.data_ptr(),
                                      p.grad.stride(0),
                                      p.grad.stride(1),
                                      p.grad.stride(2),
                                      p.grad.stride(3),
                                      s.values.data_ptr(),
                                      static_cast<float*>(s.scale.data_ptr()),
                                      checked_rows("store_directions: ", s),
                                      static_cast<const int64_t*>(s.view.data_ptr())};
  const cpu::Dtype dtype = cpu::dtype_of(p.grad);
  const auto kernel = cpu::kernels().store_directions;
  cpu::parallel_rows(p.grad.size(0), values_of(s.images), [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(cpu::store_scratch(s.images)));
    kernel(dtype, args, begin, end, scratch.data());
  });
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) {
  m.impl("perturb_stored", TORCH_BOX(&hrrl::perturb_stored_cpu));
  m.impl("store_directions", TORCH_BOX(&hrrl::store_directions_cpu));
}
