// The instruction set that the CPU kernels use: the best that the processor has, or less where the environment variable
// HRRL_CPU_CAPABILITY asks for it ("baseline", "avx2", "avx512"), which is how the tests reach every build on one
// machine.
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace hrrl::cpu {

enum class Capability { kBaseline, kAvx2, kAvx512 };

inline const char* name(Capability capability) {
  switch (capability) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

inline Capability best_capability() {
#ifdef HRRL_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      return Capability::kAvx512;
    return Capability::kAvx2;
  }
#endif
  return Capability::kBaseline;
}

inline Capability capability() {
  const Capability best = best_capability();
  const char* wanted = std::getenv("HRRL_CPU_CAPABILITY");
  if (wanted == nullptr) return best;
  for (Capability c : {Capability::kBaseline, Capability::kAvx2, Capability::kAvx512})
    if (std::strcmp(wanted, name(c)) == 0 && c <= best) return c;
  return best;
}

}  // namespace hrrl::cpu
