// The CPU kernels and how one of their builds is chosen.
//
// The files in csrc/cpu/kernels/ know nothing of torch: raw pointers and sizes. CMake compiles them once per
// instruction set, each build in a namespace of its own, and kernels() picks the best that the processor has when first
// asked.
#pragma once

#include <cstdint>

#include "common/chi_square.h"
#include "common/dtype_id.h"
#include "common/image_program.h"
#include "common/stored_images.h"

namespace hrrl::cpu {

using hrrl::Dtype;

// out_i = x_i + tau tau_scale_i g_i / ||g_i||, norm_i = ||g_i|| for the examples i in [begin, end).
struct PerturbArgs {
  const void *x, *grad;     // [B, size]
  void* out;                // [B, size]
  void* norm;               // [B] float, or double for kDouble
  const double* tau_scale;  // [B] or null
  double tau;
  int64_t size;
};

// Rows [begin, end) of the weighted cross-entropy. Returns whether all their targets and concepts were in range; where
// one was not, nothing was read or written with it and the result is void.
struct CrossEntropyArgs {
  const void* logits;  // [B, C]
  const int64_t *target, *concept_;
  const double* weight;  // [K] q_k / p_k / B
  void* example_loss;    // [B] float, or double for kDouble
  void* grad_logits;     // [B, C] or null; float for kHalf
  int64_t batch, classes, concepts;
  double label_smoothing;
};

// Rows in work at a time: few enough that they and their exponentials stay in the first-level cache between passes.
constexpr int64_t kMostRows = 16;
inline int64_t rows_at_once(int64_t classes) {
  constexpr int64_t kFloats = 2000;
  const int64_t rows = kFloats / (classes + kMostRows);
  return rows < 1 ? 1 : rows > kMostRows ? kMostRows : rows;
}
inline int64_t cross_entropy_scratch(int64_t classes) { return rows_at_once(classes) * (classes + kMostRows); }

// out = P(q + eta (concept_loss - lam (q - q0))); [K], q and out float or double, and out may be q
struct UpdateArgs {
  const void *q, *concept_loss, *q0;
  void* out;
  Dtype q_type, concept_loss_type, q0_type;
  int64_t size;
  double eta, lam;
  bool keeps;  // leaves out as it is where there is no projection
};

// out_k = q0_k w_k, the best response (common/chi_square.h); [K], q0 and out float or double
struct ChiSquareArgs {
  const void *concept_loss, *q0;
  void* out;
  Dtype concept_loss_type, q0_type;
  int64_t size;
  chi_square::Game game;
};
constexpr int64_t kChiSquareLanes = 8;  // doubles of the widest vector
inline int64_t chi_square_scratch(int64_t size) { return 2 * (size + kChiSquareLanes - 1); }

// cross_bk += sum over g and m of p_bgkm q_bgkm for the examples b in [begin, end).
struct Rank1DotArgs {
  const void *p, *q;               // [B, G, K, M] float or double
  double* cross;                   // [B, K]
  int64_t groups, clusters, size;  // G, K, M
};

// The nearest centre of the examples in [begin, end).
struct Rank1ArgminArgs {
  const double *cross, *square;          // [B, K], [B]
  const double *centre_square, *weight;  // [K]
  int64_t* assignment;                   // [B]
  double *distance, *gap;                // [B]
  int64_t clusters;
  double rtol;
};

// out_i = x_i + tau A z_i / ||A z_i|| for the examples i in [begin, end); rows are in range.
struct PerturbStoredArgs {
  StoredImages images;
  const void* x;
  void* out;
  int64_t of_batch, of_channel, of_row, of_column;  // strides of x and out
  const void* values;
  const float* scale;
  const int64_t *row, *view;
  double tau;
};

// Rows row_i of values and scale <- the direction of A^T grad_i for the examples i in [begin, end).
struct StoreDirectionsArgs {
  StoredImages images;
  const void* grad;
  int64_t of_batch, of_channel, of_row, of_column;
  void* values;
  float* scale;
  const int64_t *row, *view;
};
inline int64_t store_scratch(const StoredImages& of) { return of.channels * of.rows * of.columns; }

// out_i = (1 - m) x_i + m sum_j w_j chain_j(x_i) for the images i in [begin, end); operations are in range.
struct MixChainsArgs {
  ImageType type;
  ImageShape shape;
  ImageProgram program;
  const void* images;
  void* out;
};
// Doubles: three pictures of 4 bytes a pixel, a sum for each channel, and what lines are worked out in; of narrow
// images two with what a blur reaches on either side are the widest
inline int64_t mix_chains_scratch(const ImageShape& of) {
  return of.height * of.width * (2 + of.channels) + 16 * (of.width + of.height) + 2 * kMostBlur;
}

// The highest scores of a rectangle of images and captions (csrc/cpu/kernels/hardest_negatives.cpp)
struct HardestArgs {
  const void *image, *caption;              // [I, D], [C, D] float or double
  const void *image_group, *caption_group;  // [I], [C] int32_t beside float, int64_t beside double
  int64_t size;                             // D
  bool order;
};
struct HardestRange {
  int64_t image_begin, image_end, caption_begin, caption_end;
  // Written to where something higher is found: [I] and [C], indexed from the first image and caption of all
  void* caption_score;
  int64_t* caption_index;
  void* image_score;
  int64_t* image_index;
  void* panel;  // D * kScoreColumns of scratch
};
constexpr int64_t kScoreRows = 192, kScoreColumns = 64;  // ranges begin at multiples of these

// The hinges of a rectangle of images and captions (csrc/cpu/kernels/hinge_coefficients.cpp)
struct HingeArgs {
  const void *image, *caption;                // [I, D], [C, D] float or double
  const void *image_group, *caption_group;    // as of HardestArgs
  const void *image_below, *caption_below;    // [I], [C] as image
  const void *image_weight, *caption_weight;  // [I], [C] as image
  void* coefficient;                          // [I, C] as image
  int64_t captions, size;                     // C, D
};
struct HingeRange {
  int64_t image_begin, image_end, caption_begin, caption_end;
  double *loss, *of_image, *of_caption;  // added to: [], [I], [C]
  void* panel;                           // as of HardestRange
};

// How many scores are above a bound of their row, or column, and how many reach another
// (csrc/cpu/kernels/count_scores.cpp)
struct CountArgs {
  const void* score;              // [I, C] float or double
  const void* image_bounds[2];    // [I] as score
  const void* caption_bounds[2];  // [C] as score
  int64_t* image_counts[2];       // [I], added to
  int64_t captions;               // C
};
struct CountRange {
  int64_t begin, end;    // images
  void* caption_counts;  // [2, C] int32_t beside float, int64_t beside double; added to
};

// What pairs add to the gradients of their rows (csrc/cpu/kernels/pair_gradients.cpp); indices are in range, or below
// 0.
struct PairArgs {
  const void *image, *caption;  // [I, D], [C, D] float or double
  const int64_t *row, *column;  // [N]
  const void* weight;           // [N] as image
  void* of_pair;                // [N], what pair_scores gives, or what pair_scales leaves for pair_gradients
  void *grad_image, *grad_caption;
  int64_t images, captions, size, pairs;  // I, C, D, N
  bool order;
};
constexpr int64_t kPairColumns = 64;  // threads part columns at multiples of these

// Entries of a row of the projection that share a maximum.
constexpr int64_t kSimplexBlock = 128;

struct Kernels {
  const char* name;
  void (*perturb)(Dtype, const PerturbArgs&, int64_t begin, int64_t end);
  // scratch: cross_entropy_scratch() doubles
  bool (*concept_cross_entropy)(Dtype, const CrossEntropyArgs&, int64_t begin, int64_t end, double* scratch);
  // One row of `size` entries; block_max: one double per kSimplexBlock of them. out may be v.
  void (*project_simplex)(Dtype, const void* v, void* out, int64_t size, double radius, double* block_max);
  void (*project_simplex_backward)(Dtype, const void* p, const void* grad, void* out, int64_t size);  // one row
  // ascended: `size` doubles; may be out where that is double and nothing is to be kept
  void (*update_distribution)(const UpdateArgs&, double* ascended, double* block_max);
  void (*chi_square_response)(const ChiSquareArgs&, double* scratch);         // chi_square_scratch() doubles
  void (*rank1_dot)(Dtype, const Rank1DotArgs&, int64_t begin, int64_t end);  // kFloat, kDouble
  void (*rank1_argmin)(const Rank1ArgminArgs&, int64_t begin, int64_t end);
  void (*hardest_negatives)(Dtype, const HardestArgs&, const HardestRange&);  // kFloat, kDouble
  void (*hinge_coefficients)(Dtype, const HingeArgs&, const HingeRange&);
  void (*count_scores)(Dtype, const CountArgs&, const CountRange&);
  void (*pair_scores)(Dtype, const PairArgs&, int64_t begin, int64_t end);  // of pairs
  void (*pair_scales)(Dtype, const PairArgs&, int64_t begin, int64_t end);
  void (*pair_gradients)(Dtype, const PairArgs&, int64_t begin, int64_t end);  // of columns
  void (*perturb_stored)(Dtype, const PerturbStoredArgs&, int64_t begin, int64_t end);
  // scratch: store_scratch() doubles
  void (*store_directions)(Dtype, const StoreDirectionsArgs&, int64_t begin, int64_t end, double* scratch);
  // scratch: mix_chains_scratch() doubles
  void (*mix_chains)(const MixChainsArgs&, int64_t begin, int64_t end, double* scratch);
};

#define HRRL_DECLARE_ISA(isa)                                                                              \
  namespace isa {                                                                                          \
  void perturb(Dtype, const PerturbArgs&, int64_t begin, int64_t end);                                     \
  bool concept_cross_entropy(Dtype, const CrossEntropyArgs&, int64_t begin, int64_t end, double* scratch); \
  void project_simplex(Dtype, const void* v, void* out, int64_t size, double radius, double* block_max);   \
  void project_simplex_backward(Dtype, const void* p, const void* grad, void* out, int64_t size);          \
  void update_distribution(const UpdateArgs&, double* ascended, double* block_max);                        \
  void chi_square_response(const ChiSquareArgs&, double* scratch);                                         \
  void rank1_dot(Dtype, const Rank1DotArgs&, int64_t begin, int64_t end);                                  \
  void rank1_argmin(const Rank1ArgminArgs&, int64_t begin, int64_t end);                                   \
  void hardest_negatives(Dtype, const HardestArgs&, const HardestRange&);                                  \
  void hinge_coefficients(Dtype, const HingeArgs&, const HingeRange&);                                     \
  void count_scores(Dtype, const CountArgs&, const CountRange&);                                           \
  void pair_scores(Dtype, const PairArgs&, int64_t begin, int64_t end);                                    \
  void pair_scales(Dtype, const PairArgs&, int64_t begin, int64_t end);                                    \
  void pair_gradients(Dtype, const PairArgs&, int64_t begin, int64_t end);                                 \
  void perturb_stored(Dtype, const PerturbStoredArgs&, int64_t begin, int64_t end);                        \
  void store_directions(Dtype, const StoreDirectionsArgs&, int64_t begin, int64_t end, double* scratch);   \
  void mix_chains(const MixChainsArgs&, int64_t begin, int64_t end, double* scratch);                      \
  }
HRRL_DECLARE_ISA(baseline)
#ifdef HRRL_X86
HRRL_DECLARE_ISA(avx2)
HRRL_DECLARE_ISA(avx512)
#endif
#undef HRRL_DECLARE_ISA

const Kernels& kernels();

}  // namespace hrrl::cpu
