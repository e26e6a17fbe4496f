// Vectors of kWidth floats for the CPU kernels, on the compilers' vector extension.
//
// Each file that includes this is compiled once per instruction set. So everything here has internal linkage: were
// these functions shared between the builds, the linker could keep the AVX-512 copy and run it on a processor without
// AVX-512. For the same reason the kernels use no templates of the standard library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/dtype_id.h"

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define HRRL_INLINE static inline __attribute__((always_inline))
#define HRRL_INLINE_MEMBER __attribute__((always_inline))

namespace hrrl::cpu::HRRL_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

using half = _Float16;
struct bfloat16 {
  uint16_t bits;
};

// Wider vectors than the registers would compile, too, but gcc takes their comparisons apart lane by lane. So a vfloat
// becomes two vectors of doubles, low(v) and high(v).
constexpr int kDoubles = kWidth / 2;
typedef float vfloat __attribute__((vector_size(4 * kWidth)));
typedef uint32_t vuint __attribute__((vector_size(4 * kWidth)));
typedef int32_t vint __attribute__((vector_size(4 * kWidth)));
typedef uint16_t vshort __attribute__((vector_size(2 * kWidth)));
typedef double vdouble __attribute__((vector_size(8 * kDoubles)));
typedef int64_t vlong __attribute__((vector_size(8 * kDoubles)));
typedef float vhalf __attribute__((vector_size(4 * kDoubles)));  // half as many floats, not floats of half precision

// Calls f with a value of the type, for its type alone.
template <class F>
HRRL_INLINE auto dispatch(Dtype dtype, F f) -> decltype(f(float{})) {
  switch (dtype) {
    case Dtype::kDouble:
      return f(double{});
    case Dtype::kHalf:
      return f(half{});
    case Dtype::kBFloat16:
      return f(bfloat16{});
    default:
      return f(float{});
  }
}

template <class To, class From>
HRRL_INLINE To bit_cast(From from) {
  To to;
  static_assert(sizeof(to) == sizeof(from));
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

HRRL_INLINE vfloat broadcast(float value) { return value - vfloat{}; }
template <class vector, size_t... kLane>
HRRL_INLINE vector lane_numbers(std::index_sequence<kLane...>) {
  return vector{kLane...};
}
template <class vector = vint>
HRRL_INLINE vector lane_numbers() {
  return lane_numbers<vector>(std::make_index_sequence<sizeof(vector) / sizeof(vector{}[0])>());
}
template <size_t kFrom, size_t... kLane>
HRRL_INLINE vdouble half_of(vfloat v, std::index_sequence<kLane...>) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, (kFrom + kLane)...), vdouble);
}
HRRL_INLINE vdouble low(vfloat v) { return half_of<0>(v, std::make_index_sequence<kDoubles>()); }
HRRL_INLINE vdouble high(vfloat v) { return half_of<kDoubles>(v, std::make_index_sequence<kDoubles>()); }
template <size_t... kLane>
HRRL_INLINE vfloat join(vdouble low, vdouble high, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(__builtin_convertvector(low, vhalf), __builtin_convertvector(high, vhalf), kLane...);
}
HRRL_INLINE vfloat join(vdouble low, vdouble high) { return join(low, high, std::make_index_sequence<kWidth>()); }

HRRL_INLINE vfloat max(vfloat a, vfloat b) { return a > b ? a : b; }
HRRL_INLINE vdouble max(vdouble a, vdouble b) { return a > b ? a : b; }
HRRL_INLINE vdouble min(vdouble a, vdouble b) { return a < b ? a : b; }

// One element

HRRL_INLINE float to_float(float v) { return v; }
HRRL_INLINE float to_float(half v) { return static_cast<float>(v); }
HRRL_INLINE float to_float(bfloat16 v) { return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

template <class scalar_t>
HRRL_INLINE double to_double(scalar_t v) {
  return to_float(v);
}
HRRL_INLINE double to_double(double v) { return v; }

HRRL_INLINE void assign(double& to, double v) { to = v; }
HRRL_INLINE void assign(float& to, float v) { to = v; }
HRRL_INLINE void assign(half& to, float v) { to = static_cast<half>(v); }
HRRL_INLINE void assign(bfloat16& to, float v) {  // to nearest, ties to even; NaN stays NaN
  const uint32_t bits = bit_cast<uint32_t>(v);
  to.bits = v != v ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The upper half of each lane is the bfloat16 nearest to it, ties to even. A NaN is cut, not rounded, lest it carry
// over into the sign; what arithmetic returns is a quiet NaN, which stays one.
HRRL_INLINE vuint round_to_bfloat16(vfloat v) {
  const vuint bits = bit_cast<vuint>(v);
  return bits + (v == v ? ((bits >> 16) & 1) + 0x7fff : vuint{});
}

// kWidth elements at any alignment

HRRL_INLINE vfloat load(const float* p) {
  vfloat v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
HRRL_INLINE vdouble load(const double* p) {
  vdouble v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
HRRL_INLINE vfloat load(const bfloat16* p) {
  vshort bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return bit_cast<vfloat>(__builtin_convertvector(bits, vuint) << 16);
}
HRRL_INLINE vfloat load(const half* p) {
#if defined(__AVX512F__)
  return bit_cast<vfloat>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return bit_cast<vfloat>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  vfloat v;
  for (int lane = 0; lane < kWidth; ++lane) v[lane] = to_float(p[lane]);
  return v;
#endif
}

HRRL_INLINE void store(float* p, vfloat v) { __builtin_memcpy(p, &v, sizeof(v)); }
HRRL_INLINE void store(bfloat16* p, vfloat v) {
  const vshort result = __builtin_convertvector(round_to_bfloat16(v) >> 16, vshort);
  __builtin_memcpy(p, &result, sizeof(result));
}
HRRL_INLINE void store(half* p, vfloat v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kWidth; ++lane) assign(p[lane], v[lane]);
#endif
}

HRRL_INLINE void store(double* p, vdouble v) { __builtin_memcpy(p, &v, sizeof(v)); }
HRRL_INLINE void store(float* p, vdouble v) {
  const vhalf rounded = __builtin_convertvector(v, vhalf);
  __builtin_memcpy(p, &rounded, sizeof(rounded));
}

// kDoubles elements at any alignment, as doubles

HRRL_INLINE vdouble load_doubles(const float* p) {
  vhalf v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, vdouble);
}
template <class scalar_t>
HRRL_INLINE vdouble load_doubles(const scalar_t* p) {
  vhalf v;
  for (int lane = 0; lane < kDoubles; ++lane) v[lane] = to_float(p[lane]);
  return __builtin_convertvector(v, vdouble);
}
HRRL_INLINE vdouble load_doubles(const double* p) { return load(p); }

// 2 kWidth elements at any alignment, in an order that load_pair and store_pair share: bfloat16 splits into even and
// odd places, which takes a shift and a mask where neighbours would have to be spread out.

struct Pair {
  vfloat first, second;
};
template <class scalar_t>
HRRL_INLINE Pair load_pair(const scalar_t* p) {
  return {load(p), load(p + kWidth)};
}
HRRL_INLINE Pair load_pair(const bfloat16* p) {
  vuint bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return {bit_cast<vfloat>(bits << 16), bit_cast<vfloat>(bits & 0xffff0000u)};
}
template <class scalar_t>
HRRL_INLINE void store_pair(scalar_t* p, Pair v) {
  store(p, v.first);
  store(p + kWidth, v.second);
}
HRRL_INLINE void store_pair(bfloat16* p, Pair v) {
  const vuint bits = (round_to_bfloat16(v.first) >> 16) | (round_to_bfloat16(v.second) & 0xffff0000u);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// Across the lanes, by halves: after log2 rotations every lane holds the result.

template <int kShift, class vector, size_t... kLane>
HRRL_INLINE vector rotate(vector v, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(v, v, ((kLane + kShift) % sizeof...(kLane))...);
}
template <int kLanes, int kShift = kLanes / 2, class vector, class Combine>
HRRL_INLINE auto across(vector v, Combine combine) {
  v = combine(v, rotate<kShift>(v, std::make_index_sequence<kLanes>()));
  if constexpr (kShift > 1)
    return across<kLanes, kShift / 2>(v, combine);
  else
    return v[0];
}
struct Add {
  template <class vector>
  vector operator()(vector a, vector b) const {
    return a + b;
  }
};
struct Smaller {
  template <class vector>
  vector operator()(vector a, vector b) const {
    return a < b ? a : b;
  }
};
struct Larger {
  template <class vector>
  vector operator()(vector a, vector b) const {
    return a > b ? a : b;
  }
};
// Whether a comparison holds in any lane.
template <class mask>
HRRL_INLINE bool any(mask holds) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(bit_cast<__m512i>(holds), bit_cast<__m512i>(holds)) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256(bit_cast<__m256i>(holds), bit_cast<__m256i>(holds)) == 0;
#else
  const vlong bits = bit_cast<vlong>(holds);
  return (bits[0] | bits[1]) != 0;
#endif
}
HRRL_INLINE float sum(vfloat v) { return across<kWidth>(v, Add{}); }
HRRL_INLINE double sum(vdouble v) { return across<kDoubles>(v, Add{}); }
HRRL_INLINE int64_t sum(vlong v) { return across<kDoubles>(v, Add{}); }
HRRL_INLINE float max(vfloat v) { return across<kWidth>(v, Larger{}); }
HRRL_INLINE double max(vdouble v) { return across<kDoubles>(v, Larger{}); }

// As many vectors as each has lanes, one per row, to one vector with a row per lane: result[r] = op over the lanes of
// rows[r], in the order of across(). A step takes two neighbours, in each of which several rows have kSpan lanes each,
// to one in which they have half as many.

template <int kSpan, int kPart, class vector, size_t... kLane>
HRRL_INLINE vector halves(vector a, vector b, std::index_sequence<kLane...>) {
  constexpr int kHalf = kSpan / 2;
  return __builtin_shufflevector(a, b, (kLane / kHalf * kSpan + kLane % kHalf + kPart * kHalf)...);
}
template <int kSpan, class vector, class Combine>
HRRL_INLINE vector reduce_rows(vector* rows, Combine combine) {
  constexpr auto kLanes = std::make_index_sequence<sizeof(vector) / sizeof(rows[0][0])>();
  for (int r = 0; r < kSpan / 2; ++r) {
    const vector a = rows[2 * r], b = rows[2 * r + 1];
    rows[r] = combine(halves<kSpan, 0>(a, b, kLanes), halves<kSpan, 1>(a, b, kLanes));
  }
  if constexpr (kSpan > 2)
    return reduce_rows<kSpan / 2>(rows, combine);
  else
    return rows[0];
}

template <class Combine>
HRRL_INLINE vfloat reduce_rows(vfloat* rows, int count, Combine combine) {
  if (count == 1) return broadcast(across<kWidth>(rows[0], combine));
  for (int r = count; r < kWidth; ++r) rows[r] = vfloat{};
  return reduce_rows<kWidth>(rows, combine);
}

// exp(x) for x <= 0, to 1 ulp; below -87.3, where float32 has no normal numbers left, 0. NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is the Taylor series of e^r economised to degree 6; 2^n is put
// together from its bits. Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
HRRL_INLINE vfloat exp_nonpositive(vfloat x) {
  constexpr float kMagic = 12582912.0f;
  const vfloat shifted = x * 1.44269504088896341f + kMagic;
  const vfloat n = shifted - kMagic;
  const vfloat r = (x - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  vfloat p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const vuint exponent = (bit_cast<vuint>(shifted) - 0x4b400000u + 127u) << 23;
  return x < -87.3f ? vfloat{} : p * bit_cast<vfloat>(exponent);
}

// log(x) for finite x >= 1, to 1 ulp; NaN stays NaN. x = 2^n m with m from sqrt(1/2) to sqrt(2), and the polynomial is
// that of Cephes for log(1 + t) = t - t^2 / 2 + t^3 P(t).
HRRL_INLINE vfloat log_from_one(vfloat x) {
  const vuint offset = bit_cast<vuint>(x) - 0x3f3504f3u;  // of sqrt(1/2)
  const vint exponent = bit_cast<vint>(offset) >> 23;
  const vfloat n = __builtin_convertvector(exponent, vfloat);
  const vfloat t = bit_cast<vfloat>((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  vfloat p = broadcast(7.0376836292e-2f);
  p = p * t - 1.1514610310e-1f;
  p = p * t + 1.1676998740e-1f;
  p = p * t - 1.2420140846e-1f;
  p = p * t + 1.4249322787e-1f;
  p = p * t - 1.6668057665e-1f;
  p = p * t + 2.0000714765e-1f;
  p = p * t - 2.4999993993e-1f;
  p = p * t + 3.3333331174e-1f;
  const vfloat square = t * t;
  const vfloat low = (p * t) * square - n * 2.12194440e-4f - 0.5f * square;
  return x == x ? (t + low) + n * 0.693359375f : x;
}

}  // namespace hrrl::cpu::HRRL_ISA
