// How stored directions lie, by numbers that need neither torch nor CUDA.
#pragma once

#include <cstdint>

namespace hrrl {

struct StoredImages {
  int64_t channels, height, width, padding, resolution;
  int64_t rows, columns;  // of what is stored
  int64_t bytes;          // of a row of values
  bool signs;
};

inline StoredImages stored_images(int64_t channels, int64_t height, int64_t width, int64_t padding, int64_t resolution,
                                  bool signs) {
  const int64_t rows = (height + resolution - 1) / resolution, columns = (width + resolution - 1) / resolution;
  const int64_t values = channels * rows * columns;
  return {channels, height, width, padding, resolution, rows, columns, signs ? (values + 7) / 8 : values, signs};
}

}  // namespace hrrl
