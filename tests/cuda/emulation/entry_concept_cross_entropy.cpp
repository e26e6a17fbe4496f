// clang-format off: the kernels need what the emulation declares
#include "cuda_emulation.h"
#include "cuda/concept_cross_entropy.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_concept_cross_entropy(int dtype, const void* logits, const int64_t* target,
                                                     const int64_t* concept_, const double* q,
                                                     const double* concept_count, void* loss, double* concept_loss,
                                                     void* example_loss, void* grad_logits, int64_t batch,
                                                     int64_t classes, int64_t concepts, double label_smoothing) {
  const Workspace workspace(cuda::kCrossEntropyWorkspace);
  cuda::launch_concept_cross_entropy(static_cast<Dtype>(dtype),
                                     {logits, target, concept_, q, concept_count, loss, concept_loss, example_loss,
                                      grad_logits, batch, classes, concepts, label_smoothing, workspace.data()},
                                     nullptr);
  return emulation::failure();
}
