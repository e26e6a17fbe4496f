#include <torch/csrc/stable/library.h>

#include <vector>

#include "cpu/dtype.h"
#include "mix_chains.h"

namespace hrrl {

Tensor mix_chains_cpu(const Tensor& images, const Tensor& operation, const Tensor& parameter, const Tensor& weight,
                      const Tensor& mix) {
  const MixChains m = prepare_mix_chains(images, operation, parameter, weight, mix);
  const int64_t batch = m.images.size(0), steps = m.program.chains * m.program.steps;
  for (int64_t i = 0; i < batch * steps; ++i)
    if (m.program.operation[i] < kNothing || m.program.operation[i] >= kImageOperations)
      fail<std::out_of_range>("mix_chains: operation must lie in -1 .. ", kImageOperations - 1, ", got ",
                              m.program.operation[i], " for image ", i / steps);
  const int64_t pixels = m.shape.height * m.shape.width;
  if (pixels == 0) return m.out;
  const cpu::MixChainsArgs args{m.type, m.shape, m.program, m.images.data_ptr(), m.out.data_ptr()};
  const auto kernel = cpu::kernels().mix_chains;
  cpu::parallel_rows(batch, pixels * (2 * steps + 4), [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(cpu::mix_chains_scratch(m.shape)));
    kernel(args, begin, end, scratch.data());
  });
  return m.out;
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) { m.impl("mix_chains", TORCH_BOX(&hrrl::mix_chains_cpu)); }
