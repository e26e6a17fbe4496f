// The CPU kernels as parallel_for runs them, on threads that a thread sanitizer knows: built by CMakeLists.txt under
// HRRL_SANITIZE=thread, run by tests/test_sanitizers.py.
//
// Rows are dealt out one by one to several threads, and their sizes are no multiple of a vector. A store that reaches
// into the next row, a read of a row that another thread is writing, or anything shared that is written to is a race.
// With the argument "race" all threads get all rows: the net holds.
#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/kernels.h"

namespace {

using hrrl::cpu::Dtype;

constexpr int64_t kRows = 24, kAtOnce = 2;
constexpr int kThreads = 4;
constexpr size_t kLargestElement = 8;
bool race = false;

template <class F>
void on_threads(F f) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&f, t] {
      for (int64_t row = race ? 0 : kAtOnce * t; row < kRows; row += kAtOnce * (race ? 1 : kThreads))
        f(row, row + kAtOnce);
    });
  for (std::thread& thread : threads) thread.join();
}

void run(const hrrl::cpu::Kernels& kernels, Dtype dtype, int64_t size) {
  // All bytes 0x3c: a small positive number in every type.
  const std::vector<unsigned char> in(kRows * size * kLargestElement, 0x3c);
  std::vector<unsigned char> out(in.size()), per_row(kRows * kLargestElement);
  const std::vector<double> tau(kRows, 0.5), weight(3, 0.25);
  std::vector<int64_t> target(kRows), concept_(kRows);
  for (int64_t i = 0; i < kRows; ++i) target[i] = i % size, concept_[i] = i % 3;

  const hrrl::cpu::PerturbArgs perturb{in.data(), in.data(), out.data(), per_row.data(), tau.data(), 1.0, size};
  on_threads([&](int64_t begin, int64_t end) { kernels.perturb(dtype, perturb, begin, end); });

  const hrrl::cpu::CrossEntropyArgs loss{
      in.data(), target.data(), concept_.data(), weight.data(), per_row.data(), out.data(), kRows, size, 3, 0.1};
  on_threads([&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(hrrl::cpu::cross_entropy_scratch(size)));
    kernels.concept_cross_entropy(dtype, loss, begin, end, scratch.data());
  });

  const auto bytes = static_cast<int64_t>(in.size()) / kRows;  // of a row, at least its elements
  on_threads([&](int64_t begin, int64_t end) {
    double block_max[2];  // rows of up to two blocks
    for (int64_t row = begin; row < end; ++row)
      kernels.project_simplex(dtype, in.data() + row * bytes, out.data() + row * bytes, size, 1.0, block_max);
  });

  std::vector<int64_t> row(kRows), view(3 * kRows);
  std::vector<float> scale(kRows, 0.5f);
  for (int64_t i = 0; i < kRows; ++i) row[i] = (5 * i) % kRows, view[3 * i] = i % 3, view[3 * i + 2] = i % 2;
  for (bool signs : {false, true}) {
    const auto images = hrrl::stored_images(1, 1, size, 1, 1, signs);
    std::vector<unsigned char> values(static_cast<size_t>(kRows * images.bytes), 0x3c);
    const hrrl::cpu::PerturbStoredArgs moved{images, in.data(),     out.data(),   size,       size,        size,
                                             1,      values.data(), scale.data(), row.data(), view.data(), 0.5};
    on_threads([&](int64_t begin, int64_t end) { kernels.perturb_stored(dtype, moved, begin, end); });
    const hrrl::cpu::StoreDirectionsArgs put{images, in.data(),     size,         size,       size,
                                             1,      values.data(), scale.data(), row.data(), view.data()};
    on_threads([&](int64_t begin, int64_t end) {
      std::vector<double> scratch(static_cast<size_t>(hrrl::cpu::store_scratch(images)));
      kernels.store_directions(dtype, put, begin, end, scratch.data());
    });
  }

  // A chain of every operation, on images of one line
  const std::vector<unsigned char> levels(static_cast<size_t>(kRows * size), 100);
  std::vector<unsigned char> mixed(levels.size());
  std::vector<int64_t> operations(kRows * hrrl::kImageOperations);
  for (size_t k = 0; k < operations.size(); ++k) operations[k] = static_cast<int64_t>(k) % hrrl::kImageOperations;
  const std::vector<double> parameters(operations.size() * hrrl::kImageParameters, 0.1);
  const std::vector<float> shares(kRows, 1.0f);
  const hrrl::ImageShape shape{1, 1, size, size, size, size, 1};
  const hrrl::cpu::MixChainsArgs mixing{
      hrrl::ImageType::kLevels,
      shape,
      {operations.data(), parameters.data(), shares.data(), shares.data(), 1, hrrl::kImageOperations},
      levels.data(),
      mixed.data()};
  on_threads([&](int64_t begin, int64_t end) {
    std::vector<double> scratch(static_cast<size_t>(hrrl::cpu::mix_chains_scratch(shape)));
    kernels.mix_chains(mixing, begin, end, scratch.data());
  });

  if (dtype != Dtype::kFloat && dtype != Dtype::kDouble) return;
  std::vector<double> cross(kRows * size), distance(kRows), gap(kRows);
  std::vector<int64_t> assignment(kRows);
  for (bool lanes_are_clusters : {true, false}) {
    const int64_t clusters = lanes_are_clusters ? size : 1, terms = lanes_are_clusters ? 1 : size;
    const hrrl::cpu::Rank1DotArgs dot{in.data(), in.data(), cross.data(), 1, clusters, terms};
    on_threads([&](int64_t begin, int64_t end) { kernels.rank1_dot(dtype, dot, begin, end); });
  }
  // Ranges of captions of all images, as many as threads have rows: each keeps what it found apart.
  constexpr int64_t kRanges = kRows / kAtOnce;
  const std::vector<int64_t> ids(static_cast<size_t>(kRows));
  std::vector<double> of_images(kRanges * kRows), of_captions(kRows);
  std::vector<int64_t> images(kRanges * kRows), captions(kRows);
  for (bool order : {false, true}) {
    const hrrl::cpu::HardestArgs hardest{in.data(), in.data(), ids.data(), ids.data(), size, order};
    on_threads([&](int64_t begin, int64_t end) {
      std::vector<double> panel(static_cast<size_t>(size * hrrl::cpu::kScoreColumns));
      const int64_t range = begin / kAtOnce * kRows;
      kernels.hardest_negatives(dtype, hardest,
                                {0, kRows, begin, end, of_images.data() + range, images.data() + range,
                                 of_captions.data(), captions.data(), panel.data()});
    });
  }
  // In the same way; its coefficients are a row for every image.
  const std::vector<double> side(kRows, 0.5);
  std::vector<double> coefficient(kRows * kRows), sums(kRanges * kRows), losses(kRanges);
  const hrrl::cpu::HingeArgs hinges{in.data(),   in.data(),   ids.data(),         ids.data(), side.data(), side.data(),
                                    side.data(), side.data(), coefficient.data(), kRows,      size};
  on_threads([&](int64_t begin, int64_t end) {
    std::vector<double> panel(static_cast<size_t>(size * hrrl::cpu::kScoreColumns));
    const int64_t range = begin / kAtOnce;
    kernels.hinge_coefficients(
        dtype, hinges,
        {0, kRows, begin, end, losses.data() + range, sums.data() + range * kRows, of_captions.data(), panel.data()});
  });
  // Ranges of rows, whose columns are counted apart
  std::vector<int64_t> above(kRows), reached(kRows), by_column(static_cast<size_t>(2 * kRanges * size));
  const hrrl::cpu::CountArgs counting{
      in.data(), {side.data(), side.data()}, {in.data(), in.data()}, {above.data(), reached.data()}, size};
  on_threads([&](int64_t begin, int64_t end) {
    kernels.count_scores(dtype, counting, {begin, end, by_column.data() + begin / kAtOnce * 2 * size});
  });
  for (bool order : {false, true}) {
    std::vector<double> scales(kRows), to_image(kRows * size), to_caption(kRows * size);
    const hrrl::cpu::PairArgs pairs{
        in.data(),         in.data(), row.data(), row.data(), side.data(), scales.data(), to_image.data(),
        to_caption.data(), kRows,     kRows,      size,       kRows,       order};
    on_threads([&](int64_t begin, int64_t end) { kernels.pair_scores(dtype, pairs, begin, end); });
    on_threads([&](int64_t begin, int64_t end) { kernels.pair_scales(dtype, pairs, begin, end); });
    const int64_t slice = (size + kRanges - 1) / kRanges;
    on_threads([&](int64_t begin, int64_t) {
      const int64_t first = std::min(size, begin / kAtOnce * slice);
      kernels.pair_gradients(dtype, pairs, first, std::min(size, first + slice));
    });
  }
  const std::vector<double> one(static_cast<size_t>(kRows + size), 1.0);
  const hrrl::cpu::Rank1ArgminArgs nearest{cross.data(),    one.data(), one.data(), one.data(), assignment.data(),
                                           distance.data(), gap.data(), size,       1e-6};
  on_threads([&](int64_t begin, int64_t end) { kernels.rank1_argmin(nearest, begin, end); });
}

}  // namespace

int main(int argc, char** argv) {
  race = argc > 1 && std::strcmp(argv[1], "race") == 0;
  for (Dtype dtype : {Dtype::kFloat, Dtype::kDouble, Dtype::kHalf, Dtype::kBFloat16})
    for (int64_t size : {1, 3, 7, 9, 17, 31, 67, 131}) run(hrrl::cpu::kernels(), dtype, size);
}
