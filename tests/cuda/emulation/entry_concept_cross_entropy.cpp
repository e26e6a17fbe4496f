// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/concept_cross_entropy.cu"
#include "cuda/scale_gradient.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_concept_cross_entropy(int dtype, const void* logits, const int64_t* target,
                                                     const int64_t* concept_, int q_dtype, const void* q,
                                                     int count_dtype, const void* concept_count, void* loss,
                                                     void* concept_loss, void* example_loss, void* grad_logits,
                                                     int64_t batch, int64_t classes, int64_t concepts,
                                                     double label_smoothing) {
  const auto q_type = static_cast<Dtype>(q_dtype), count_type = static_cast<Dtype>(count_dtype);
  const Workspace workspace(cuda::cross_entropy_workspace(batch, concepts));
  cuda::launch_concept_cross_entropy(static_cast<Dtype>(dtype),
                                     {logits,
                                      target,
                                      concept_,
                                      {q, q_type},
                                      {concept_count, count_type},
                                      loss,
                                      {concept_loss, q_type},
                                      example_loss,
                                      grad_logits,
                                      batch,
                                      classes,
                                      concepts,
                                      label_smoothing,
                                      workspace.data()},
                                     nullptr);
  return emulation::failure();
}

extern "C" const char* emulate_scale_gradient(int dtype, void* gradient, const void* factor, int64_t size) {
  cuda::launch_scale_gradient(static_cast<Dtype>(dtype), {gradient, factor, size}, nullptr);
  return emulation::failure();
}
