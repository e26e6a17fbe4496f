// What the torch border (csrc/cuda/*_cuda.cpp) calls: one launcher per operator. No torch here, and nothing of CUDA but
// the stream, so a kernel file can also be compiled for the host (tests/cuda/emulation).
//
// Every launcher only enqueues on `stream`: it allocates nothing, waits for nothing and reads nothing back, so it may
// run while a CUDA graph is captured. Arrays are contiguous and live on the device of the stream, which is current.
//
// Sums are formed in an order that follows from shapes, dtypes and alignment, never from timing, nor from the number of
// multiprocessors: equal inputs give equal bits in every run. Paths that need a newer device cut their work as the
// older path does. Each file says where a device could still show in the last bit.
#pragma once

#include <cstdint>

#include "common/chi_square.h"
#include "common/dtype_id.h"
#include "common/image_program.h"
#include "common/stored_images.h"

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace hrrl::cuda {

// A short array of any of the four types; kernels read it as doubles. For distributions over concepts: converting one
// would take a launch of its own.
struct Reals {
  const void* data;
  Dtype dtype;
};
struct MutableReals {
  void* data;
  Dtype dtype;
};

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
// On the current device
int64_t perturb_workspace(Dtype dtype, int64_t batch, int64_t size);
void launch_perturb(Dtype dtype, const PerturbParams& params, CUstream_st* stream);

// The concept-weighted cross-entropy and its sums. No label is trusted: an example whose target or concept is out of
// range, or whose concept has no positive count, gets NaN as its loss and its gradient, and `loss` is NaN.
struct CrossEntropyParams {
  const void* logits;                // [B, C]
  const int64_t *target, *concept_;  // [B]
  Reals q, concept_count;            // [K]
  void* loss;                        // [] float, or double for kDouble
  MutableReals concept_loss;         // [K]
  void* example_loss;                // [B] type of loss
  void* grad_logits;                 // [B, C] or null; float for kHalf
  int64_t batch, classes, concepts;  // B, C, K
  double label_smoothing;
  double* workspace;  // cross_entropy_workspace() doubles, uninitialised
};
int64_t cross_entropy_workspace(int64_t batch, int64_t concepts);
void launch_concept_cross_entropy(Dtype dtype, const CrossEntropyParams& params, CUstream_st* stream);

// gradient_j *= factor, which is looked at on the device: nothing is touched where it is 1. gradient is aligned for
// packs.
struct ScaleGradientParams {
  void* gradient;
  const void* factor;  // [] float, or double for kDouble
  int64_t size;
};
void launch_scale_gradient(Dtype dtype, const ScaleGradientParams& params, CUstream_st* stream);

// out_r = the nearest point of {p >= 0, sum p = radius} to v_r, for rows v, out [R, K]; at least one row
struct ProjectSimplexParams {
  Reals v;           // [R, K]
  MutableReals out;  // [R, K] type of v
  int64_t rows, size;
  double radius;
  double* workspace;  // simplex_workspace() doubles, uninitialised
};
int64_t simplex_workspace(int64_t rows, int64_t size);
void launch_project_simplex(const ProjectSimplexParams& params, CUstream_st* stream);

// out_r = 1_S (grad_r - mean_S grad_r), S = {p_r > 0}; at least one row
struct ProjectSimplexBackwardParams {
  const void *p, *grad;  // [R, K]
  void* out;             // [R, K]
  int64_t rows, size;
  double* workspace;  // project_simplex_backward_workspace() doubles, uninitialised
};
// On the current device, for params without one
int64_t project_simplex_backward_workspace(Dtype dtype, const ProjectSimplexBackwardParams& params);
void launch_project_simplex_backward(Dtype dtype, const ProjectSimplexBackwardParams& params, CUstream_st* stream);

// out = P(q + eta eta_scale (concept_loss - lam (q - q0)))
struct UpdateDistributionParams {
  Reals q, concept_loss, q0;  // [K]
  const double* eta_scale;    // [] or null
  MutableReals out;           // [K]
  int64_t size;               // K
  double eta, lam;
  double* workspace;  // simplex_workspace(1, K) doubles, uninitialised
};
void launch_update_distribution(const UpdateDistributionParams& params, CUstream_st* stream);

// The same with 1/(lam t) in place of eta eta_scale, c times less for t <= s. t counts this step first; where there is
// no projection out stays as it is, and it may be q.
struct Schedule {
  int64_t* t;  // []
  Reals c;     // []
  int64_t s;
};
void launch_step_distribution(const UpdateDistributionParams& params, const Schedule& schedule, CUstream_st* stream);

// out = the best response (common/chi_square.h)
struct ChiSquareParams {
  Reals concept_loss, q0;  // [K]
  MutableReals out;        // [K]
  int64_t size;            // K
  chi_square::Game game;
  double* workspace;  // chi_square_workspace() doubles, uninitialised
};
int64_t chi_square_workspace(int64_t size);
void launch_chi_square_response(const ChiSquareParams& params, CUstream_st* stream);

// cross_bk += sum over g and m of p_bgkm q_bgkm; dtype is kFloat or kDouble, and no size is 0
struct Rank1DotParams {
  double* cross;                          // [B, K]
  const void *p, *q;                      // [B, G, K, M]
  int64_t batch, groups, clusters, size;  // B, G, K, M
};
void launch_rank1_dot(Dtype dtype, const Rank1DotParams& params, CUstream_st* stream);

// The lowest k whose weight_k S_bk is within rounding of the lowest, S_bk = max(centre_square_k - 2 cross_bk +
// square_b, 0); at least one example and one cluster. -1 where a number is not finite.
struct Rank1ArgminParams {
  const double *cross, *square;          // [B, K], [B]
  const double *centre_square, *weight;  // [K]
  int64_t* assignment;                   // [B]
  double *distance, *gap;                // [B]
  int64_t batch, clusters;               // B, K
  double rtol;
};
void launch_rank1_argmin(const Rank1ArgminParams& params, CUstream_st* stream);

// loss_b = log(1 + sum_k e^((q_b n_k - q_b key_b)/T)), and its gradient in q_b; at least one query. dtype is kFloat or
// kDouble.
struct InfoNceParams {
  const void *query, *key, *queue;  // [B, D], [B, D], [K, D]
  void *loss, *grad_query;          // [B], [B, D] or null
  int64_t batch, count, size;       // B, K, D
  double temperature;
  void* workspace;  // info_nce_workspace() values of that type, uninitialised
};
int64_t info_nce_workspace(int64_t batch, int64_t count, int64_t size, bool with_grad);
void launch_info_nce(Dtype dtype, const InfoNceParams& params, CUstream_st* stream);

// Of every image the caption of another group with the highest score, and of every caption the image; at least one row
// in all. The score is the product, or -||max(0, caption - image)||.
struct HardestParams {
  const void *image, *caption;                 // [I, D], [C, D]
  const int64_t *image_group, *caption_group;  // [I], [C]
  int64_t *caption_index, *image_index;        // [I], [C]
  MutableReals caption_score, image_score;     // [I], [C] float, or double for kDouble
  int64_t images, captions, size;              // I, C, D
  bool order;
  double* scores;  // hardest_workspace() of each, uninitialised
  int64_t* indices;
};
int64_t hardest_workspace(int64_t images, int64_t captions);
void launch_hardest_negatives(Dtype dtype, const HardestParams& params, CUstream_st* stream);

// sum_im v_m (b_i + s_im)+ + u_i (d_m + s_im)+ over different groups, its derivative in every score, and the sums of
// that derivative's first terms along rows and second ones along columns; there may be none of either.
struct HingeParams {
  const void *image, *caption;                 // [I, D], [C, D]
  const int64_t *image_group, *caption_group;  // [I], [C]
  Reals image_below, caption_below;            // b [I], d [C] float, or double for kDouble, as what follows
  Reals image_weight, caption_weight;          // u [I], v [C]
  MutableReals loss, coefficient;              // [], [I, C]
  MutableReals of_image, of_caption;           // [I], [C]
  int64_t images, captions, size;              // I, C, D
  double* sums;                                // hinge_workspace(), uninitialised
};
int64_t hinge_workspace(int64_t images, int64_t captions);
void launch_hinge_coefficients(Dtype dtype, const HingeParams& params, CUstream_st* stream);

// The gradient of sum_n weight_n s(image_row, caption_column); at least one row in all. A pair with an index below 0 is
// none; beside an index that is too large the gradient is NaN.
struct PairParams {
  const void *image, *caption;            // [I, D], [C, D]
  const int64_t *row, *column;            // [N]
  Reals weight;                           // [N] float, or double for kDouble
  MutableReals grad_image, grad_caption;  // [I, D], [C, D] of that type
  int64_t images, captions, size, pairs;  // I, C, D, N
  bool order;
  double* scale;  // [N], uninitialised
};
void launch_pair_gradients(Dtype dtype, const PairParams& params, CUstream_st* stream);

// out_i = x_i + tau A z_i / ||A z_i||, z_i in row row_i of values. An example whose row is out of range gets NaN.
struct PerturbStoredParams {
  StoredImages images;
  const void* x;
  void* out;
  int64_t of_batch, of_channel, of_row, of_column;  // strides of x and out
  const void* values;                               // [N, bytes]
  const float* scale;                               // [N]
  const int64_t *row, *view;                        // [B], [B, 3]
  double tau;
  int64_t batch, count;  // B, N
};
void launch_perturb_stored(Dtype dtype, const PerturbStoredParams& params, CUstream_st* stream);

// Rows row_i of values and scale <- the direction of A^T grad_i. A row out of range is left out.
struct StoreDirectionsParams {
  StoredImages images;
  const void* grad;
  int64_t of_batch, of_channel, of_row, of_column;
  void* values;
  float* scale;
  const int64_t *row, *view;
  int64_t batch, count;
};
void launch_store_directions(Dtype dtype, const StoreDirectionsParams& params, CUstream_st* stream);

// out_i = (1 - m) x_i + m sum_j w_j chain_j(x_i). A number that is no operation does nothing.
struct MixChainsParams {
  ImageShape shape;
  ImageProgram program;
  const void* images;
  void* out;
  int64_t batch;
  int64_t doubles;    // mix_chains_doubles()
  double* workspace;  // mix_chains_workspace() doubles, uninitialised
};
int64_t mix_chains_doubles(ImageType type, const ImageShape& shape);  // that a block works in
int64_t mix_chains_workspace(int64_t batch, int64_t doubles);         // on the current device
void launch_mix_chains(ImageType type, MixChainsParams params, CUstream_st* stream);

}  // namespace hrrl::cuda
