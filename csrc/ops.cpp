// Every operator schema of the library, once. No logic.
//
// Letters: B examples, C classes, K concepts or clusters, G groups of a layer, M terms, R rows, I images and their
// captions, C, of dimension D. An implementation registers itself at the foot of its own file (csrc/cpu/*_cpu.cpp,
// csrc/cuda/*_cuda.cpp); shapes, fakes and gradients for tracing are in hrrl_ext/ops/_autograd.py, the public functions
// and what they promise in hrrl_ext/ops/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(hrrl_ext, m) {
  // x, grad [B, ...] -> x + tau * tau_scale_i * grad_i / ||grad_i||_F, and the norms [B]
  m.def("perturb(Tensor x, Tensor grad, float tau, Tensor? tau_scale=None) -> (Tensor x_perturbed, Tensor grad_norm)");

  // logits [B, C], target [B], concept [B], q [K], concept_count [K]
  //   -> loss [], concept_loss [K], example_loss [B], d loss / d logits [B, C] ([0] unless asked for)
  m.def(
      "concept_cross_entropy(Tensor logits, Tensor target, Tensor concept, Tensor q, Tensor concept_count, "
      "float label_smoothing, bool with_grad) "
      "-> (Tensor loss, Tensor concept_loss, Tensor example_loss, Tensor grad_logits)");

  // gradient *= factor [], where it is not 1; for the gradient above, on CUDA
  m.def("_scale_gradient(Tensor(a!) gradient, Tensor factor) -> ()");

  // v [..., K] -> the nearest point of {p >= 0, sum p = radius}, for every row
  m.def("project_simplex(Tensor v, float radius) -> Tensor");

  // p, grad [..., K] -> grad less its mean over the support {p > 0} of every row, and 0 outside of it
  m.def("project_simplex_backward(Tensor p, Tensor grad) -> Tensor");

  // q, concept_loss, q0 [K] -> P(q + eta * eta_scale * (concept_loss - lam * (q - q0)))
  m.def(
      "update_distribution(Tensor q, Tensor concept_loss, Tensor q0, float eta, float lam, Tensor? eta_scale=None) "
      "-> Tensor");

  // q [K], t [], both written to: t + 1, and the update of q with eta = 1/(lam t), c times less for t <= s; where that
  // has an entry that is not finite q stays
  m.def(
      "step_distribution(Tensor(a!) q, Tensor(b!) t, Tensor concept_loss, Tensor q0, Tensor c, float lam, int s) -> "
      "()");

  // concept_loss, q0 [K] -> q, the best response with the penalty lam/2 sum (q - q0)^2/q0, in the ball that this sum is
  // at most rho^2 and below max_weight q0; infinite where there is none
  m.def(
      "chi_square_response(Tensor concept_loss, Tensor q0, float lam, float rho, float max_weight) "
      "-> Tensor");

  // p, q [B, G, K, M] -> cross[b, k] += sum over g and m of p q; cross [B, K] double, contiguous, is written to
  m.def("rank1_dot(Tensor(a!) cross, Tensor p, Tensor q) -> ()");

  // cross [B, K], square [B], centre_square [K], weight [K], all double -> a [B] int64, S_a [B], gap [B]:
  // S_k = max(centre_square_k - 2 cross_k + square, 0), a the lowest k whose weight_k S_k is lowest, within rounding
  m.def(
      "rank1_argmin(Tensor cross, Tensor square, Tensor centre_square, Tensor weight, float rtol) "
      "-> (Tensor assignment, Tensor distance, Tensor gap)");

  // image [I, D], caption [C, D], groups [I], [C] -> of every image the caption of another group with the highest score
  // [I], and of every caption the image [C]; the score is the product, or -||max(0, caption - image)||
  m.def(
      "hardest_negatives(Tensor image, Tensor caption, Tensor image_group, Tensor caption_group, bool order) "
      "-> (Tensor caption_index, Tensor caption_score, Tensor image_index, Tensor image_score)");

  // image [I, D], caption [C, D], [I] and [C] of either -> sum_im v_m (b_i + s_im)+ + u_i (d_m + s_im)+ over different
  // groups, s = image caption^T, with b, d the below and u, v the weights of images and captions: loss [], its
  // derivative in s [I, C], and how much weight is above 0 in every row [I] and column [C], of v and of u
  m.def(
      "hinge_coefficients(Tensor image, Tensor caption, Tensor image_below, Tensor caption_below, Tensor image_weight, "
      "Tensor caption_weight, Tensor image_group, Tensor caption_group) "
      "-> (Tensor loss, Tensor coefficient, Tensor of_image, Tensor of_caption)");

  // image [I, D], caption [C, D], row, column, weight [N] -> the gradient of sum_n weight_n s(image_row,
  // caption_column) in image and in caption; s as of hardest_negatives
  m.def(
      "pair_gradients(Tensor image, Tensor caption, Tensor row, Tensor column, Tensor weight, bool order) "
      "-> (Tensor grad_image, Tensor grad_caption)");

  // image, caption [P, D] -> s of row n and row n [P]; on the CPU, for hrrl_ext.retrieval.sum_hinge
  m.def("_pair_scores(Tensor image, Tensor caption, bool order) -> Tensor");

  // image [I, D], caption [C, D], row and column [P] or none, groups [I], [C] -> (margin - s_row,column + s)+ of the
  // hardest negative of either, hinge [2, P], and of what scores their sum is made: rows and columns [3 P], and
  // weights; on the CPU, for hrrl_ext.retrieval.max_hinge
  m.def(
      "_max_hinge(Tensor image, Tensor caption, Tensor? row, Tensor? column, Tensor image_group, Tensor caption_group, "
      "float margin, bool order) -> (Tensor hinge, Tensor rows, Tensor columns, Tensor weight)");

  // score [I, C], bounds [2, I] and [2, C]: counts, int64 of their shapes, += how many scores of every row and of every
  // column are above the first bound, and how many reach the second; on the CPU, for hrrl_ext.retrieval.evaluate
  m.def(
      "_count_scores(Tensor score, Tensor image_bounds, Tensor caption_bounds, Tensor(a!) image_counts, "
      "Tensor(b!) caption_counts) -> ()");

  // query, key [B, D], queue [K, D] -> loss [B] of InfoNCE, and d loss_b / d query_b [B, D] ([0] unless asked for); on
  // CUDA, for hrrl_ext.contrastive.info_nce
  m.def(
      "_info_nce(Tensor query, Tensor key, Tensor queue, float temperature, bool with_grad) "
      "-> (Tensor loss, Tensor grad_query)");

  // x [B, C, H, W] -> x + tau A z_i / ||A z_i||_F, z_i in row row_i of values, A by view [B, 3]
  m.def(
      "perturb_stored(Tensor x, Tensor values, Tensor scale, Tensor row, Tensor view, float tau, int padding, "
      "int resolution) -> Tensor");

  // grad [B, C, H, W]: rows row_i, all different, of values and scale are written to with the direction of A^T grad_i
  m.def(
      "store_directions(Tensor(a!) values, Tensor(b!) scale, Tensor grad, Tensor row, Tensor view, int padding, "
      "int resolution) -> ()");

  // images [B, C, H, W] uint8 or floating -> (1 - mix_i) x + mix_i sum_j weight_ij chain_j(x), a chain of D operations
  // (csrc/common/image_program.h) with six parameters each
  m.def("mix_chains(Tensor images, Tensor operation, Tensor parameter, Tensor weight, Tensor mix) -> Tensor");
}
