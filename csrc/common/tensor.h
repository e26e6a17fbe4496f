// Argument checks and conversions of the operators. A message names the operator, the argument, what was expected and
// what was got.
//
// std::invalid_argument reaches the caller of hrrl_ext.ops as ValueError (hrrl_ext/ops/_library.py sees to it) and
// std::out_of_range as IndexError; the tests hold us to both. torch's own check macro would give a RuntimeError that
// begins with a path of the machine it was built on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace hrrl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < t.dim(); ++d) text << (d ? ", " : "") << t.size(d);
  text << ']';
  return text.str();
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline bool is_floating(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return true;
    default:
      return false;
  }
}

// New tensors on the device of `like`, straight from the allocator: a call through the dispatcher takes a microsecond,
// as long as the rest of an operator at the size of a concept distribution.
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline Tensor new_strided(const Tensor& like, Sizes sizes, Sizes strides, ScalarType type) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                                  device_type, like.get_device_index(), &result));
  return Tensor(result);
}

inline Tensor new_empty(const Tensor& like, Sizes sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= sizes[d] > 0 ? sizes[d] : 1) strides[d] = stride;
  return new_strided(like, sizes, strides, type);
}

// Whether the elements fill one block of memory, each place once, in some order of the dimensions.
inline bool is_dense(const Tensor& t) {
  const Sizes sizes = t.sizes(), strides = t.strides();
  int64_t filled = 1;
  for (size_t placed = 0; placed < sizes.size(); ++placed) {  // in each round the next larger dimension
    int64_t next = 0;
    for (size_t d = 0; d < sizes.size(); ++d)
      if (sizes[d] > 1 && strides[d] == filled) next = filled * sizes[d];
    if (next == 0) break;
    filled = next;
  }
  return filled == t.numel();
}

inline Tensor new_like(const Tensor& t) {
  return is_dense(t) ? new_strided(t, t.sizes(), t.strides(), t.scalar_type()) : torch::stable::empty_like(t);
}

// `t`, copied where its strides are not those of `like`, which has its sizes.
inline Tensor laid_out_as(const Tensor& like, const Tensor& t) {
  bool same = true;
  for (int64_t d = 0; d < t.dim(); ++d) same &= t.size(d) <= 1 || t.stride(d) == like.stride(d);
  if (same) return t;
  Tensor copy = new_strided(t, t.sizes(), like.strides(), t.scalar_type());
  return torch::stable::copy_(copy, t);
}

// Conversions that cost nothing where nothing needs converting.
inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
// What is computed in: float, or double for double.
inline ScalarType computed_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline Tensor as_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}
inline Tensor as_floating(const Tensor& t) { return is_floating(t) ? t : torch::stable::to(t, ScalarType::Double); }
inline Tensor as_double(const Tensor& t) { return as_contiguous(as_type(t, ScalarType::Double)); }

template <class Error, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace hrrl

// The message is built only when the check fails.
#define HRRL_CHECK(condition, ...) \
  if (!(condition)) ::hrrl::fail<std::invalid_argument>(__VA_ARGS__)
