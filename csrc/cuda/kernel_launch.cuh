// From a kernel and its arguments to a launch, and from a Dtype to a C++ type.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/scalar.cuh"

namespace hrrl::cuda {

// Under nvcc this is kernel<<<grid, block, shared_bytes, stream>>>(args...); the host emulation of the tests has its
// own. A grid holds fewer than 2^31 blocks: arrays that would need more exceed every device's memory.
template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), int64_t grid, int block, size_t shared_bytes,
                   [[maybe_unused]] CUstream_st* stream, const Args&... args) {
#ifdef __CUDACC__
  kernel<<<dim3(static_cast<unsigned>(grid)), dim3(static_cast<unsigned>(block)), shared_bytes, stream>>>(args...);
#else
  emulation::launch(static_cast<unsigned>(grid), static_cast<unsigned>(block), shared_bytes, [&] { kernel(args...); });
#endif
}

// The shared memory that the launch asked for.
template <class T>
__device__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char hrrl_dynamic_shared[];
  return reinterpret_cast<T*>(hrrl_dynamic_shared);
#else
  return static_cast<T*>(emulation::dynamic_shared());
#endif
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<scalar_t>{}).
template <class F>
void dispatch(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f(Type<float>{});
    case Dtype::kDouble:
      return f(Type<double>{});
    case Dtype::kHalf:
      return f(Type<__half>{});
    case Dtype::kBFloat16:
      return f(Type<__nv_bfloat16>{});
  }
}

}  // namespace hrrl::cuda
