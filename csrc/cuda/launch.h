// What the torch border (csrc/cuda/*_cuda.cpp) calls: one launcher per operator. No torch here, and nothing of CUDA but
// the stream, so a kernel file can also be compiled for the host (tests/cuda/emulation).
//
// Every launcher only enqueues on `stream`: it allocates nothing, waits for nothing and reads nothing back, so it may
// run while a CUDA graph is captured. Arrays are contiguous and live on the device of the stream. Given the same
// shapes, the sums are formed in the same order on every device and in every run: equal inputs give equal bits.
#pragma once

#include <cstdint>

#include "common/dtype_id.h"

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace hrrl::cuda {

// out_i = x_i + tau tau_scale_i g_i / ||g_i||, norm_i = ||g_i||
struct PerturbParams {
  const void *x, *grad;     // [B, P]
  void* out;                // [B, P]
  void* norm;               // [B] float, or double for kDouble
  const double* tau_scale;  // [B] or null
  double tau;
  int64_t batch, size;  // B, P
  void* workspace;      // perturb_workspace() doubles, uninitialised
};
int64_t perturb_workspace(Dtype dtype, int64_t batch, int64_t size);
void launch_perturb(Dtype dtype, const PerturbParams& params, CUstream_st* stream);

// The concept-weighted cross-entropy and its sums. No label is trusted: an example whose target or concept is out of
// range, or whose concept has no positive count, gets NaN as its loss and its gradient, and `loss` is NaN.
struct CrossEntropyParams {
  const void* logits;                // [B, C]
  const int64_t *target, *concept_;  // [B]
  const double *q, *concept_count;   // [K]
  void* loss;                        // [] float, or double for kDouble
  double* concept_loss;              // [K]
  void* example_loss;                // [B] type of loss
  void* grad_logits;                 // [B, C] or null; float for kHalf
  int64_t batch, classes, concepts;  // B, C, K
  double label_smoothing;
  void* workspace;  // kCrossEntropyWorkspace doubles, uninitialised
};
constexpr int64_t kCrossEntropyWorkspace = 2;
void launch_concept_cross_entropy(Dtype dtype, const CrossEntropyParams& params, CUstream_st* stream);

// out_r = the nearest point of {p >= 0, sum p = radius} to v_r, for rows v, out [R, K]; at least one row
void launch_project_simplex(Dtype dtype, const void* v, void* out, int64_t rows, int64_t size, double radius,
                            CUstream_st* stream);

// out = P(q + eta eta_scale (concept_loss - lam (q - q0)))
struct UpdateDistributionParams {
  const double *q, *concept_loss, *q0;  // [K]
  const double* eta_scale;              // [] or null
  double* out;                          // [K]
  int64_t size;                         // K
  double eta, lam;
};
void launch_update_distribution(const UpdateDistributionParams& params, CUstream_st* stream);

}  // namespace hrrl::cuda
