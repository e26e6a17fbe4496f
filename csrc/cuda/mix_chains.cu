// (1 - m) x + m sum_j w_j chain_j(x), a block for each image.
//
// - An image becomes a picture, a word of three 8-bit levels for a pixel (csrc/common/pixels.h), beside its sums in the
//   type that computes. Three pictures and the sums lie in shared memory where they fit into it, else in a workspace
//   of global memory, which the caches hold: the blocks that are there at once share it.
// - Every operation goes from a picture to another, a pixel a thread, and a barrier follows. Which operation it is and
//   its parameters are the same for all threads of the block.
// - Histograms are counted in shared memory by atomic additions of integers: their sums have no order. All other sums
//   are of integers, too, or of a single pixel: equal inputs give equal bits, and those of the CPU.
#include "common/pixels.h"
#include "cuda/kernel_launch.cuh"
#include "cuda/reduce.cuh"

namespace hrrl::cuda {

using namespace hrrl::pixels;

constexpr int kMixBlock = 256;
constexpr int64_t kMixBlocksOfMultiprocessor = 4;
constexpr int64_t kMixShared = 40 * 1024;  // bytes that several blocks of a multiprocessor have

__device__ inline float to_acc(uint8_t v) { return v; }
__device__ inline void assign(uint8_t& to, float v) { to = static_cast<uint8_t>(rounded(v)); }

template <class scalar_t>
constexpr bool kIsLevels = std::is_same_v<scalar_t, uint8_t>;

struct Histogram {
  int counts[3][256];
  uint8_t table[3][256];
};

struct Image {
  int channels, height, width;
  __device__ int size() const { return height * width; }
};

// What the threads of a block do for every pixel, and that all have done it
template <class Function>
__device__ void for_each_pixel(const Image& image, Function function) {
  for (int e = static_cast<int>(threadIdx.x); e < image.size(); e += static_cast<int>(blockDim.x)) function(e);
  __syncthreads();
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables by histogram

__device__ inline void count(const Image& image, const word* from, Histogram& histogram) {
  int* const counts = histogram.counts[0];
  for (int v = static_cast<int>(threadIdx.x); v < 3 * 256; v += static_cast<int>(blockDim.x)) counts[v] = 0;
  __syncthreads();
  for_each_pixel(image, [&](int e) {
    for (int c = 0; c < 3; ++c) atomicAdd(&histogram.counts[c][channel(from[e], c)], 1);
  });
}

constexpr int kBins = 256 / kWarpSize;  // of a lane

// A warp for each channel: the lowest level that occurs and the highest, and how many pixels are below its lane's bins.
struct Levels {
  int low, high, below;
};
__device__ inline Levels levels_of(const int* counts) {
  using Warp = LaneTeam<kWarpSize>;
  const int lane = Warp::rank();
  Levels found{255, 0, 0};
  int own = 0;
  for (int v = lane * kBins; v < (lane + 1) * kBins; ++v) {
    own += counts[v];
    if (counts[v] == 0) continue;
    found.low = v < found.low ? v : found.low;
    found.high = v;
  }
  found.low = Warp::reduce(found.low, Min{});
  found.high = Warp::reduce(found.high, Max{});
  int upto = own;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int before = __shfl_sync(0xffffffffu, upto, lane >= offset ? lane - offset : lane);
    if (lane >= offset) upto += before;
  }
  found.below = upto - own;
  return found;
}

__device__ inline void make_tables(const Image& image, int64_t operation, Histogram& histogram) {
  const int c = static_cast<int>(threadIdx.x) / kWarpSize;
  if (c < 3) {
    const int* const counts = histogram.counts[c];
    Levels found = levels_of(counts);
    const int64_t step = (image.size() - counts[found.high]) / 255;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    for (int v = lane * kBins; v < (lane + 1) * kBins; ++v) {
      const int level =
          operation == kAutocontrast ? autocontrasted(v, found.low, found.high) : equalized(v, found.below, step);
      histogram.table[c][v] = static_cast<uint8_t>(level);
      found.below += counts[v];
    }
  }
  __syncthreads();
}

// ---------------------------------------------------------------------------------------------------------------------
// Operations

__device__ inline void affine(const Image& image, const word* from, word* to, const double* matrix) {
  const double a = matrix[0], b = matrix[1], c = matrix[2], d = matrix[3], e = matrix[4], f = matrix[5];
  const double height = image.height, width = image.width;
  for_each_pixel(image, [&](int pixel) {
    const double x = pixel % image.width + 0.5, y = pixel / image.width + 0.5;
    const double across = (a * x + b * y) + c, down = (d * x + e * y) + f;
    const Place column = placed(across, image.width), row = placed(down, image.height);
    const word *above = from + row.first * image.width, *below = from + row.second * image.width;
    const word shown = between(above[column.first], above[column.second], below[column.first], below[column.second],
                               column.share, row.share, 0.0f);
    to[pixel] = inside(across, width) && inside(down, height) ? shown : 0;
  });
}

__device__ inline void crop(const Image& image, const word* from, word* to, const double* box) {
  const Part across = part_of(box[1], box[3], image.width), down = part_of(box[0], box[2], image.height);
  const bool flip = box[4] > 0;
  for_each_pixel(image, [&](int pixel) {
    const int x = pixel % image.width;
    const Place column = placed(flip ? image.width - 1 - x : x, across), row = placed(pixel / image.width, down);
    const word *above = from + row.first * image.width, *below = from + row.second * image.width;
    to[pixel] = between(above[column.first], above[column.second], below[column.first], below[column.second],
                        column.share, row.share, 0.5f);
  });
}

__device__ inline void sharpness(const Image& image, const word* from, word* to, float factor) {
  for_each_pixel(image, [&](int pixel) {
    const int x = pixel % image.width, y = pixel / image.width;
    const word p = from[pixel];
    float smooth[3];
    for (int c = 0; c < 3; ++c) smooth[c] = static_cast<float>(channel(p, c));
    if (x > 0 && x < image.width - 1 && y > 0 && y < image.height - 1)
      for (int c = 0; c < 3; ++c) {
        int sum = 4 * channel(p, c);
        for (int row = -1; row <= 1; ++row)
          for (int column = -1; column <= 1; ++column) sum += channel(from[pixel + row * image.width + column], c);
        smooth[c] = smoothed(static_cast<word>(sum));
      }
    to[pixel] = enhanced(p, smooth[0], smooth[1], smooth[2], factor);
  });
}

// Three boxes along rows, then along columns; ends in `other`.
__device__ inline void blur(const Image& image, const word* from, word* to, word* other, const Box& box) {
#pragma unroll 1
  for (int time = 0; time < 6; ++time) {
    const bool across = time < 3;
    const int last = (across ? image.width : image.height) - 1, stride = across ? 1 : image.width;
    for_each_pixel(image, [&](int pixel) {
      const int at = across ? pixel % image.width : pixel / image.width;
      const auto moved = [&](int k) {
        const int place = at + k < 0 ? 0 : at + k < last ? at + k : last;
        return from[pixel + (place - at) * stride];
      };
      word near[3] = {}, far[3];
      for (int k = -box.reach; k <= box.reach; ++k) {
        const word p = moved(k);
        for (int c = 0; c < 3; ++c) near[c] += static_cast<word>(channel(p, c));
      }
      const word before = moved(-box.reach - 1), after = moved(box.reach + 1);
      for (int c = 0; c < 3; ++c) far[c] = static_cast<word>(channel(before, c) + channel(after, c));
      to[pixel] = pixel_of(boxed(near[0], far[0], box), boxed(near[1], far[1], box), boxed(near[2], far[2], box));
    });
    word* const made = to;
    to = other;
    from = other = made;
  }
}

__device__ inline float mean_grey(const Image& image, const word* from) {
  int64_t sum = 0;
  for_each_pixel(image, [&](int e) { sum += grey_of(from[e]); });
  return static_cast<float>(rounded_mean(BlockTeam::reduce(sum, Sum{}), image.size()));
}

// `to` is another picture than `from`, and `other` one more. Returns where the result is.
__device__ inline word* operate(const Image& image, int64_t operation, const double* parameter, const word* from,
                                word* to, word* other, Histogram& histogram) {
  const auto factor = static_cast<float>(parameter[0]);
  const auto for_levels = [&](auto function) {
    for_each_pixel(image, [&](int e) {
      const word p = from[e];
      to[e] = pixel_of(function(0, channel(p, 0)), function(1, channel(p, 1)), function(2, channel(p, 2)));
    });
  };
  switch (operation) {
    case kAutocontrast:
    case kEqualize:
      count(image, from, histogram);
      make_tables(image, operation, histogram);
      for_levels([&](int c, int v) { return static_cast<int>(histogram.table[c][v]); });
      break;
    case kPosterize:
      for_levels([&](int, int v) { return posterized(v, parameter[0]); });
      break;
    case kSolarize:
      for_levels([&](int, int v) { return solarized(v, parameter[0]); });
      break;
    case kBrightness:
      for_levels([&](int, int v) { return enhanced(v, 0.0f, factor); });
      break;
    case kContrast: {
      const float mean = mean_grey(image, from);
      for_levels([&](int, int v) { return enhanced(v, mean, factor); });
      break;
    }
    case kAffine:
      affine(image, from, to, parameter);
      break;
    case kCrop:
      crop(image, from, to, parameter);
      break;
    case kColor:
      for_each_pixel(image, [&](int e) { to[e] = coloured(from[e], factor); });
      break;
    case kHue: {
      const int steps = hue_steps(parameter[0]);
      for_each_pixel(image, [&](int e) { to[e] = turned(from[e], steps); });
      break;
    }
    case kSharpness:
      sharpness(image, from, to, factor);
      break;
    case kBlur:
      blur(image, from, to, other, box_of(parameter[0]));
      return other;
    default:
      return nullptr;
  }
  return to;
}

// ---------------------------------------------------------------------------------------------------------------------
// An image

template <class scalar_t>
__device__ word as_level(acc_type<scalar_t> v) {
  using acc_t = acc_type<scalar_t>;
  if constexpr (kIsLevels<scalar_t>) return static_cast<word>(v);
  const acc_t scaled = v * 255, low = scaled > 0 ? scaled : 0;
  return static_cast<word>(rounded(low < 255 ? low : static_cast<acc_t>(255)));
}

template <class scalar_t>
__global__ void __launch_bounds__(kMixBlock) mix_chains_kernel(const MixChainsParams p) {
  using acc_t = acc_type<scalar_t>;
  __shared__ Histogram histogram;
  const Image image{static_cast<int>(p.shape.channels), static_cast<int>(p.shape.height),
                    static_cast<int>(p.shape.width)};
  const int size = image.size();
  double* const memory = p.workspace == nullptr ? dynamic_shared<double>() : p.workspace + blockIdx.x * p.doubles;
  // Sums first: pictures of an odd number of pixels would put doubles where they may not be.
  acc_t* const sums = reinterpret_cast<acc_t*>(memory);
  word* const original = reinterpret_cast<word*>(sums + image.channels * size);
  word* const pictures[] = {original + size, original + 2 * size};
  constexpr acc_t kTop = kIsLevels<scalar_t> ? 255 : 1;
  constexpr float kPerLevel = kIsLevels<scalar_t> ? 1.0f : static_cast<float>(1.0 / 255);
  const ImageProgram& program = p.program;
  for (int64_t i = blockIdx.x; i < p.batch; i += gridDim.x) {
    const auto* x = static_cast<const scalar_t*>(p.images) + i * p.shape.of_batch;
    auto* out = static_cast<scalar_t*>(p.out) + i * p.shape.of_batch;
    const auto place = [&](int e, int c) {
      return c * p.shape.of_channel + e / image.width * p.shape.of_row + e % image.width * p.shape.of_column;
    };
    const float mix = program.mix[i];
    const auto share_of_original = static_cast<acc_t>(1.0f - mix);
    for_each_pixel(image, [&](int e) {
      word pixel = 0;
      for (int c = 0; c < image.channels; ++c) {
        const acc_t v = to_acc(x[place(e, c)]);
        sums[c * size + e] = v * share_of_original;
        pixel |= as_level<scalar_t>(v) << (8 * c);
      }
      original[e] = image.channels == 1 ? pixel * 0x010101u : pixel;
    });
    for (int64_t j = i * program.chains; j < (i + 1) * program.chains; ++j) {
      const auto share = static_cast<acc_t>(mix * program.weight[j] * kPerLevel);
      if (share == 0) continue;
      word* now = original;
      for (int64_t step = j * program.steps; step < (j + 1) * program.steps; ++step) {
        word* const to = now == pictures[0] ? pictures[1] : pictures[0];
        word* const made = operate(image, program.operation[step], program.parameter + kImageParameters * step, now, to,
                                   to == pictures[0] ? pictures[1] : pictures[0], histogram);
        if (made != nullptr) now = made;
      }
      for_each_pixel(image, [&](int e) {
        for (int c = 0; c < image.channels; ++c) sums[c * size + e] += static_cast<acc_t>(channel(now[e], c)) * share;
      });
    }
    for_each_pixel(image, [&](int e) {
      for (int c = 0; c < image.channels; ++c) {
        acc_t v = sums[c * size + e];
        v = v < 0 ? 0 : v;  // NaN stays
        assign(out[place(e, c)], v > kTop ? kTop : v);
      }
    });
  }
}

int64_t mix_chains_doubles(ImageType type, const ImageShape& shape) {
  const int64_t sum = type == ImageType::kDouble ? sizeof(double) : sizeof(float);
  const int64_t pixel = shape.channels * sum + 3 * static_cast<int64_t>(sizeof(word));
  return ceil_div(shape.height * shape.width * pixel, sizeof(double));
}

static bool fits_in_shared(int64_t doubles) { return doubles * static_cast<int64_t>(sizeof(double)) <= kMixShared; }

static int64_t blocks_of(int64_t batch, int64_t doubles) {
  const int64_t at_once = kMixBlocksOfMultiprocessor * multiprocessors();
  return fits_in_shared(doubles) || batch < at_once ? batch : at_once;
}

int64_t mix_chains_workspace(int64_t batch, int64_t doubles) {
  return fits_in_shared(doubles) ? 0 : blocks_of(batch, doubles) * doubles;
}

template <class F>
static void dispatch_images(ImageType type, F f) {
  switch (type) {
    case ImageType::kLevels:
      return f(Type<uint8_t>{});
    case ImageType::kFloat:
      return f(Type<float>{});
    case ImageType::kDouble:
      return f(Type<double>{});
    case ImageType::kHalf:
      return f(Type<__half>{});
    case ImageType::kBFloat16:
      return f(Type<__nv_bfloat16>{});
  }
}

void launch_mix_chains(ImageType type, MixChainsParams p, CUstream_st* stream) {
  if (p.batch == 0 || p.doubles == 0) return;
  const bool shared = fits_in_shared(p.doubles);
  if (shared) p.workspace = nullptr;
  const LaunchShape shape{blocks_of(p.batch, p.doubles), kMixBlock,
                          shared ? static_cast<size_t>(p.doubles) * sizeof(double) : 0};
  dispatch_images(type, [&](auto of) {
    using scalar_t = typename decltype(of)::type;
    launch_kernel<mix_chains_kernel<scalar_t>>(shape, stream, p);
  });
}

}  // namespace hrrl::cuda
