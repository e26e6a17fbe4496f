#include "cpu/kernels.h"

#include "cpu/capability.h"

namespace hrrl::cpu {

const Kernels& kernels() {
  static const Kernels chosen = [] {
    const Capability best = capability();
#ifdef HRRL_X86
    if (best == Capability::kAvx512) return Kernels{name(best), avx512::perturb, avx512::concept_cross_entropy};
    if (best == Capability::kAvx2) return Kernels{name(best), avx2::perturb, avx2::concept_cross_entropy};
#endif
    return Kernels{name(best), baseline::perturb, baseline::concept_cross_entropy};
  }();
  return chosen;
}

}  // namespace hrrl::cpu
