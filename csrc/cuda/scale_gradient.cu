// gradient *= factor, in place: it is looked at on the device, and where it is 1, as loss.backward() sends it, nothing
// is read or written.
#include "cuda/kernel_launch.cuh"

namespace hrrl::cuda {

constexpr int kScaleBlock = 256, kScaleBlocksAtOnce = 6;  // what an sm_86 holds: 1536 threads

template <class scalar_t>
__global__ void __launch_bounds__(kScaleBlock, kScaleBlocksAtOnce) scale_gradient_kernel(const ScaleGradientParams p) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kVec = kPackSize<scalar_t>;
  const acc_t factor = *static_cast<const acc_t*>(p.factor);
  if (factor == 1) return;
  auto* gradient = static_cast<scalar_t*>(p.gradient);
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kScaleBlock + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kScaleBlock, packs = p.size / kVec;
#pragma unroll 4
  for (int64_t i = thread; i < packs; i += threads) {
    auto pack = reinterpret_cast<const Pack<scalar_t, kVec>*>(gradient)[i];
#pragma unroll
    for (int e = 0; e < kVec; ++e) assign(pack.value[e], to_acc(pack.value[e]) * factor);
    reinterpret_cast<Pack<scalar_t, kVec>*>(gradient)[i] = pack;
  }
  const int64_t rest = packs * kVec + thread;  // fewer than a pack
  if (rest < p.size) assign(gradient[rest], to_acc(gradient[rest]) * factor);
}

void launch_scale_gradient(Dtype dtype, const ScaleGradientParams& p, CUstream_st* stream) {
  dispatch(dtype, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    const int64_t needed = ceil_div(p.size, int64_t{kScaleBlock} * kPackSize<scalar_t>);
    const int64_t most = int64_t{kScaleBlocksAtOnce} * multiprocessors();
    if (needed > 0)
      launch_kernel<scale_gradient_kernel<scalar_t>>({needed < most ? needed : most, kScaleBlock}, stream, p);
  });
}

}  // namespace hrrl::cuda
