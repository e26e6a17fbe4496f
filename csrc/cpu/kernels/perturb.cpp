// out_i = x_i + tau g_i / ||g_i||, one example at a time: a pass over g for the norm, then one over x and g, whose g
// comes from cache.
//
// - The squares are summed in double. A float32 gradient can then be as small as 1e-45 or as large as 3e38 and keeps
//   its direction; in float32 its squares would vanish below 1e-23 and overflow above 1e19.
// - tau / ||g|| itself may leave the range of float32. Such an example takes the loop in double; all others take the
//   fast one.
// - ||g|| = 0 and ||g|| not finite leave the example as it is, to the bit. One overflowed gradient then costs one
//   example its perturbation, not the batch its values.
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace hrrl::cpu::HRRL_ISA {

// In double throughout.
template <class scalar_t>
static double sum_of_squares_double(const scalar_t* g, int64_t size) {
  constexpr int kChains = 8;  // hide the latency of the additions
  vdouble total[kChains] = {};
  int64_t j = 0;
  for (; j + kChains * kDoubles <= size; j += kChains * kDoubles)
    for (int chain = 0; chain < kChains; ++chain) {
      const vdouble v = load_doubles(g + j + chain * kDoubles);
      total[chain] += v * v;
    }
  for (int chain = 1; chain < kChains; ++chain) total[0] += total[chain];
  double result = sum(total[0]);
  for (; j < size; ++j) result += to_double(g[j]) * to_double(g[j]);
  return result;
}

static double sum_of_squares(const float* g, int64_t size) { return sum_of_squares_double(g, size); }

// Squares of half and bfloat16 are exact in float. So they are added up in float, a few at a time, and the sums in
// double. Out of range for that are only bfloat16 below 1e-15 or above 1e19: those take the loop in double.
template <class scalar_t>
static double sum_of_squares(const scalar_t* g, int64_t size) {
  constexpr int kChains = 4, kAdditions = 8;
  constexpr int64_t kStep = kChains * kWidth, kRun = kAdditions * kStep;
  vdouble total = {};
  int64_t j = 0;
  while (j + kStep <= size) {
    vfloat run[kChains] = {};
    for (const int64_t end = j + kRun < size ? j + kRun : size; j + kStep <= end; j += kStep)
      for (int chain = 0; chain < kChains; chain += 2) {
        const Pair v = load_pair(g + j + chain * kWidth);
        run[chain] += v.first * v.first;
        run[chain + 1] += v.second * v.second;
      }
    const vfloat added = (run[0] + run[1]) + (run[2] + run[3]);
    total += low(added) + high(added);
  }
  double result = sum(total);
  for (; j < size; ++j) result += to_double(g[j]) * to_double(g[j]);
  const bool in_range = result > 1e-30 * static_cast<double>(size) && result < 1e37;
  return in_range ? result : sum_of_squares_double(g, size);
}

template <class scalar_t>
static void add_scaled(const scalar_t* x, const scalar_t* g, float factor, scalar_t* out, int64_t size) {
  int64_t j = 0;
  for (; j + 2 * kWidth <= size; j += 2 * kWidth) {
    const Pair from = load_pair(x + j), direction = load_pair(g + j);
    store_pair(out + j, {from.first + direction.first * factor, from.second + direction.second * factor});
  }
  for (; j < size; ++j) assign(out[j], to_float(x[j]) + to_float(g[j]) * factor);
}

// To the bit. An empty example has no address that memcpy may be given.
template <class scalar_t>
static void copy(const scalar_t* x, scalar_t* out, int64_t size) {
  if (size > 0) __builtin_memcpy(out, x, static_cast<size_t>(size) * sizeof(scalar_t));
}

template <class scalar_t>
static double perturb_example(const scalar_t* x, const scalar_t* g, double tau, scalar_t* out, int64_t size) {
  const double norm = __builtin_sqrt(sum_of_squares(g, size));
  const bool usable = norm > 0.0 && norm < __builtin_inf();
  if (!usable || tau == 0.0) {
    copy(x, out, size);
    return norm;
  }
  const double factor = tau / norm;
  const double magnitude = __builtin_fabs(factor);
  if (magnitude > 1e-30 && magnitude < 1e30)
    add_scaled(x, g, static_cast<float>(factor), out, size);
  else
    for (int64_t j = 0; j < size; ++j) assign(out[j], to_float(x[j]) + static_cast<float>(to_double(g[j]) * factor));
  return norm;
}

// Doubles have no wider type to sum in: where the squares leave its range, the gradient is scaled by its largest entry.
static double perturb_example(const double* x, const double* g, double tau, double* out, int64_t size) {
  double total = 0.0, largest = 0.0;
  bool finite = true;
  for (int64_t j = 0; j < size; ++j) {
    const double magnitude = __builtin_fabs(g[j]);
    total += g[j] * g[j];
    largest = magnitude > largest ? magnitude : largest;
    finite &= magnitude < __builtin_inf();
  }
  double scale = 1.0;
  if (finite && largest > 0.0 && !(total > 1e-280 && total < 1e280)) {
    scale = largest;
    total = 0.0;
    for (int64_t j = 0; j < size; ++j) total += (g[j] / scale) * (g[j] / scale);
  }
  const double scaled_norm = __builtin_sqrt(total);
  if (!finite || largest == 0.0 || tau == 0.0) {
    copy(x, out, size);
    return finite ? scaled_norm * scale : total;
  }
  for (int64_t j = 0; j < size; ++j) out[j] = x[j] + tau * ((g[j] / scale) / scaled_norm);
  return scaled_norm * scale;
}

template <class scalar_t>
struct NormOf {
  using type = float;
};
template <>
struct NormOf<double> {
  using type = double;
};

template <class scalar_t>
static void perturb_examples(const PerturbArgs& args, int64_t begin, int64_t end) {
  using norm_t = typename NormOf<scalar_t>::type;
  const auto* x = static_cast<const scalar_t*>(args.x);
  const auto* grad = static_cast<const scalar_t*>(args.grad);
  auto* out = static_cast<scalar_t*>(args.out);
  auto* norm = static_cast<norm_t*>(args.norm);
  for (int64_t i = begin; i < end; ++i) {
    const double tau = args.tau_scale ? args.tau * args.tau_scale[i] : args.tau;
    const int64_t offset = i * args.size;
    norm[i] = static_cast<norm_t>(perturb_example(x + offset, grad + offset, tau, out + offset, args.size));
  }
}

void perturb(Dtype dtype, const PerturbArgs& args, int64_t begin, int64_t end) {
  dispatch(dtype, [&](auto type) { perturb_examples<decltype(type)>(args, begin, end); });
}

}  // namespace hrrl::cpu::HRRL_ISA
