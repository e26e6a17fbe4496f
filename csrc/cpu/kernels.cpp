#include "cpu/kernels.h"

#include "cpu/capability.h"

namespace hrrl::cpu {

#define HRRL_KERNELS(isa)                                                                                              \
  Kernels {                                                                                                            \
    name(best), isa::perturb, isa::concept_cross_entropy, isa::project_simplex, isa::project_simplex_backward,         \
        isa::update_distribution, isa::chi_square_response, isa::rank1_dot, isa::rank1_argmin, isa::hardest_negatives, \
        isa::hinge_coefficients, isa::count_scores, isa::pair_scores, isa::pair_scales, isa::pair_gradients,           \
        isa::perturb_stored, isa::store_directions, isa::mix_chains                                                    \
  }

const Kernels& kernels() {
  static const Kernels chosen = [] {
    const Capability best = capability();
#ifdef HRRL_X86
    if (best == Capability::kAvx512) return HRRL_KERNELS(avx512);
    if (best == Capability::kAvx2) return HRRL_KERNELS(avx2);
#endif
    return HRRL_KERNELS(baseline);
  }();
  return chosen;
}

}  // namespace hrrl::cpu
