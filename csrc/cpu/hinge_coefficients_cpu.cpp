#include <torch/csrc/stable/library.h>

#include <vector>

#include "cpu/score_parts.h"
#include "hinge_coefficients.h"

namespace hrrl {

namespace {

// Sums of each part of `count` rows or columns; together in the order of the parts, whichever thread had them.
class Sums {
 public:
  Sums(int64_t parts, int64_t count) : count_(count), sums_(static_cast<size_t>(parts * count)) {}
  double* part(int64_t at) { return sums_.data() + at * count_; }
  template <class scalar_t>
  void write(const Tensor& to) const {
    for (int64_t i = 0; i < count_; ++i) {
      double total = 0;
      for (size_t at = static_cast<size_t>(i); at < sums_.size(); at += static_cast<size_t>(count_)) total += sums_[at];
      static_cast<scalar_t*>(to.data_ptr())[i] = static_cast<scalar_t>(total);
    }
  }

 private:
  int64_t count_;
  std::vector<double> sums_;
};

template <class scalar_t>
void form_hinges(const HingeCoefficients& h) {
  const Tensor image = as_type(h.image, h.loss.scalar_type()), caption = as_type(h.caption, h.loss.scalar_type());
  const cpu::Groups<scalar_t> groups(h.image_group, h.caption_group);
  const cpu::HingeArgs args{image.data_ptr(),
                            caption.data_ptr(),
                            groups.images(),
                            groups.captions(),
                            h.image_below.data_ptr(),
                            h.caption_below.data_ptr(),
                            h.image_weight.data_ptr(),
                            h.caption_weight.data_ptr(),
                            h.coefficient.data_ptr(),
                            h.captions,
                            h.size};
  const cpu::Parts rows(h.images, cpu::kScoreRows), columns(h.captions, cpu::kScoreColumns);
  Sums of_image(columns.count, h.images), of_caption(rows.count, h.captions), loss(rows.count * columns.count, 1);
  const Dtype dtype = cpu::dtype_of(h.loss);
  const auto kernel = cpu::kernels().hinge_coefficients;
  cpu::over_parts<scalar_t>(rows, columns, h.size, [&](int64_t row, int64_t column, void* panel) {
    kernel(dtype, args,
           {rows.begin(row), rows.begin(row + 1), columns.begin(column), columns.begin(column + 1),
            loss.part(row * columns.count + column), of_image.part(column), of_caption.part(row), panel});
  });
  loss.write<scalar_t>(h.loss);
  of_image.write<scalar_t>(h.of_image);
  of_caption.write<scalar_t>(h.of_caption);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> hinge_coefficients_cpu(
    const Tensor& image, const Tensor& caption, const Tensor& image_below, const Tensor& caption_below,
    const Tensor& image_weight, const Tensor& caption_weight, const Tensor& image_group, const Tensor& caption_group) {
  const HingeCoefficients h = prepare_hinge_coefficients(image, caption, image_below, caption_below, image_weight,
                                                         caption_weight, image_group, caption_group);
  h.loss.scalar_type() == ScalarType::Double ? form_hinges<double>(h) : form_hinges<float>(h);
  return {h.loss, h.coefficient, h.of_image, h.of_caption};
}

}  // namespace hrrl

STABLE_TORCH_LIBRARY_IMPL(hrrl_ext, CPU, m) { m.impl("hinge_coefficients", TORCH_BOX(&hrrl::hinge_coefficients_cpu)); }
