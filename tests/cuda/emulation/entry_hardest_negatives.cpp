// clang-format off: the kernels need what the emulation declares
#include "runtime_emulation.h"
#include "cuda/hardest_negatives.cu"
#include "entry.h"
// clang-format on

using namespace hrrl;

extern "C" const char* emulate_hardest_negatives(int dtype, const void* image, const void* caption,
                                                 const int64_t* image_group, const int64_t* caption_group,
                                                 int64_t* caption_index, int64_t* image_index, int score_dtype,
                                                 void* caption_score, void* image_score, int64_t images,
                                                 int64_t captions, int64_t size, bool order) {
  const int64_t workspace = cuda::hardest_workspace(images, captions);
  const Workspace scores(workspace);
  std::vector<int64_t> indices(static_cast<size_t>(workspace), int64_t{1} << 60);
  const auto type = static_cast<Dtype>(score_dtype);
  cuda::launch_hardest_negatives(static_cast<Dtype>(dtype),
                                 {image,
                                  caption,
                                  image_group,
                                  caption_group,
                                  caption_index,
                                  image_index,
                                  {caption_score, type},
                                  {image_score, type},
                                  images,
                                  captions,
                                  size,
                                  order,
                                  scores.data(),
                                  indices.data()},
                                 nullptr);
  return emulation::failure();
}
