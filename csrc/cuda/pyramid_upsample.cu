// pyramid_upsample on CUDA: both directions touch the map once. Every element is summed by a fixed thread in a fixed
// order: no atomics, bit-reproducible.
#include <algorithm>

#include "pyramid_upsample_backward.cuh"
#include "pyramid_upsample_copy.cuh"
#include "pyramid_upsample_forward.cuh"

namespace pspfast::cuda {
namespace {

unsigned grid_size(int64_t blocks) { return static_cast<unsigned>(std::min(blocks, kMaxGridX)); }

template <typename Word>
void launch_copy(const void* from, void* to, int64_t rows, int64_t row_words, int64_t to_stride, cudaStream_t stream) {
  const int64_t words = rows * row_words;
  PSPFAST_LAUNCH(copy_rows_kernel<Word>, grid_size(ceil_div(words, kCopyThreads * kCopyBatch)), kCopyThreads, 0, stream,
                 static_cast<const Word*>(from), static_cast<Word*>(to), words, row_words, to_stride);
}

// Copies the map's first channels: of every pixel or of every image, they are one run of memory.
template <typename T>
void copy_channels(const PyramidUpsampleParams& params, const void* from, void* map, cudaStream_t stream) {
  const int64_t area = params.height * params.width;
  const int64_t rows = params.batch * (params.channels_last ? area : 1);
  const int64_t row = params.first_channel * (params.channels_last ? 1 : area);
  const int64_t stride = params.map_channels * (params.channels_last ? 1 : area);
  constexpr int kSize = kVectorSize<T>;
  if (row % kSize == 0 && stride % kSize == 0 && is_vector_aligned(from) && is_vector_aligned(map)) {
    launch_copy<uint4>(from, map, rows, row / kSize, stride / kSize, stream);
  } else {
    launch_copy<T>(from, map, rows, row, stride, stream);
  }
}

struct Forward {
  const PyramidUpsampleEpilogue& epilogue;
  const float* values;
  void* map;

  bool is_aligned() const {
    return is_vector_aligned(epilogue.base) && is_vector_aligned(values) && is_vector_aligned(map);
  }

  template <typename T, int Size, bool ChannelsLast>
  void launch(const PyramidUpsampleParams& params, cudaStream_t stream) const {
    if (epilogue.copied && params.first_channel > 0) copy_channels<T>(params, epilogue.copied, map, stream);
    const UpsamplePlan plan = make_fwd_plan<Size, ChannelsLast>(params);
    const int64_t bytes = fwd_bytes(params, plan, kFwdChannels<Size, ChannelsLast>);
    const auto kernel = upsample_fwd_kernel<T, Size, ChannelsLast>;
    PSPFAST_LAUNCH(kernel, grid_size(plan.blocks), kUpsampleThreads, bytes, stream, params, plan,
                   static_cast<const T*>(epilogue.base), static_cast<const T*>(epilogue.bias), epilogue.relu, values,
                   static_cast<T*>(map));
  }
};

struct Backward {
  const void* grad_map;
  float* grad_values;

  bool is_aligned() const { return is_vector_aligned(grad_map) && is_vector_aligned(grad_values); }

  template <typename T, int Size, bool ChannelsLast>
  void launch(const PyramidUpsampleParams& params, cudaStream_t stream) const {
    const UpsamplePlan plan = make_bwd_plan<T, Size, ChannelsLast>(params);
    const auto kernel = upsample_bwd_kernel<T, Size, ChannelsLast>;
    PSPFAST_LAUNCH(kernel, grid_size(plan.blocks), kUpsampleThreads, (bwd_bytes<T, Size, ChannelsLast>(params, plan)),
                   stream, params, plan, static_cast<const T*>(grad_map), grad_values);
  }
};

// Whether the map is made of vectors.
template <int Size>
bool is_divisible(const PyramidUpsampleParams& params) {
  if (!params.channels_last) return has_pixel_vectors(params, Size);
  return params.channels % Size == 0 && params.map_channels % Size == 0 && params.first_channel % Size == 0;
}

template <typename T, int Size, typename Direction>
void launch_format(const Direction& direction, const PyramidUpsampleParams& params, cudaStream_t stream) {
  if (params.channels_last) {
    direction.template launch<T, Size, true>(params, stream);
  } else {
    direction.template launch<T, Size, false>(params, stream);
  }
}

template <typename T, typename Direction>
cudaError_t launch(const Direction& direction, const PyramidUpsampleParams& params, cudaStream_t stream) {
  constexpr int kSize = kVectorSize<T>;
  if (is_divisible<kSize>(params) && direction.is_aligned()) {
    launch_format<T, kSize>(direction, params, stream);
  } else {
    launch_format<T, 1>(direction, params, stream);
  }
  return cudaGetLastError();
}

template <typename Direction>
cudaError_t dispatch(const Direction& direction, const PyramidUpsampleParams& params, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32: return launch<float>(direction, params, stream);
    case DType::kFloat16: return launch<__half>(direction, params, stream);
    case DType::kBFloat16: return launch<__nv_bfloat16>(direction, params, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t pyramid_upsample(const PyramidUpsampleParams& params, const PyramidUpsampleEpilogue& epilogue,
                             const void* values, void* map, cudaStream_t stream) {
  return dispatch(Forward{epilogue, static_cast<const float*>(values), map}, params, stream);
}

cudaError_t pyramid_upsample_backward(const PyramidUpsampleParams& params, const void* grad_map, void* grad_values,
                                      cudaStream_t stream) {
  return dispatch(Backward{grad_map, static_cast<float*>(grad_values)}, params, stream);
}

}  // namespace pspfast::cuda
