// upsample_maps on CUDA. Every element is summed by a fixed thread in a fixed order: no atomics, bit-reproducible.
#include <algorithm>
#include <type_traits>

#include "upsample_maps_backward.cuh"
#include "upsample_maps_copy.cuh"
#include "upsample_maps_forward.cuh"

namespace pspfast::cuda {
namespace {

unsigned grid_size(int64_t blocks) { return static_cast<unsigned>(std::min(blocks, kMaxGridX)); }

template <typename Word>
void launch_copy(const void* from, void* to, int64_t rows, int64_t row_words, int64_t to_stride, cudaStream_t stream) {
  const int64_t words = rows * row_words;
  const unsigned grid = grid_size(ceil_div(words, kCopyThreads * kCopyBatch));
  const auto launch = [&]<typename Index>(Index) {
    PSPFAST_LAUNCH((copy_rows_kernel<Word, Index>), grid, kCopyThreads, 0, stream, static_cast<const Word*>(from),
                   static_cast<Word*>(to), static_cast<Index>(words), static_cast<Index>(row_words), to_stride);
  };
  // Twice as many have room: the words of a grid are no more than these and a block's.
  words < int64_t{1} << 31 ? launch(uint32_t{}) : launch(int64_t{});
}

// Copies the map's first channels: of every pixel or of every image, they are one run of memory.
template <typename T>
void copy_channels(const MapUpsampleParams& params, const void* from, void* map, cudaStream_t stream) {
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

// What a launch does, of elements T of the map and V of the values, Size of them at once. It says whether it can.
struct Forward {
  const MapUpsampleEpilogue& epilogue;
  const LevelValues<const void>& values;
  void* map;

  bool is_aligned() const { return is_vector_aligned(epilogue.base) && is_vector_aligned(map); }

  template <typename T, typename V, int Size, bool ChannelsLast>
  bool launch(const MapUpsampleParams& params, int64_t shared_bytes, cudaStream_t stream) const {
    const ForwardPlan plan = make_fwd_plan<Size, ChannelsLast>(params, shared_bytes);
    if (plan.blocks == 0) return false;
    if (epilogue.copied && params.first_channel > 0) copy_channels<T>(params, epilogue.copied, map, stream);
    const auto kernel = upsample_fwd_kernel<T, V, Size, ChannelsLast>;
    const int64_t bytes = fwd_bytes(plan, kFwdChannels<Size, ChannelsLast>);
    allow_shared_bytes(kernel, bytes);
    PSPFAST_LAUNCH(kernel, grid_size(plan.blocks), kUpsampleThreads, bytes, stream, params, plan,
                   static_cast<const T*>(epilogue.base), static_cast<const T*>(epilogue.bias), epilogue.relu, values,
                   static_cast<T*>(map));
    return true;
  }
};

struct Backward {
  const void* grad_map;
  const LevelValues<void>& values;
  float* sums;

  bool is_aligned() const { return is_vector_aligned(grad_map); }

  template <typename T, typename V, int Size, bool ChannelsLast>
  bool launch(const MapUpsampleParams& params, int64_t shared_bytes, cudaStream_t stream) const {
    const BackwardPlan plan = make_bwd_plan<T, Size, ChannelsLast>(params, shared_bytes);
    if (plan.count == 0) return false;
    const auto kernel = upsample_bwd_kernel<T, V, Size, ChannelsLast>;
    allow_shared_bytes(kernel, plan.total_bytes);
    PSPFAST_LAUNCH(kernel, grid_size(plan.blocks), kUpsampleThreads, plan.total_bytes, stream, params, plan,
                   static_cast<const T*>(grad_map), values, sums);
    if (plan.sums > 0) {
      const int64_t blocks = ceil_div(plan.sums, kSegmentThreads);
      PSPFAST_LAUNCH(add_segments_kernel<V>, grid_size(blocks), kSegmentThreads, 0, stream, params, plan, sums, values);
    }
    return true;
  }
};

// Whether the map is made of vectors.
template <int Size>
bool is_divisible(const MapUpsampleParams& params) {
  if (!params.channels_last) return has_pixel_vectors(params, Size);
  return params.channels % Size == 0 && params.map_channels % Size == 0 && params.first_channel % Size == 0;
}

template <typename Void>
bool is_aligned(const MapUpsampleParams& params, const LevelValues<Void>& values, int size) {
  for (int level = 0; level < params.levels; ++level) {
    if (!is_vector_aligned(values.data[level]) || values.image_stride[level] % size != 0) return false;
  }
  return true;
}

template <typename T, typename V, int Size, typename Direction>
bool launch_format(const Direction& direction, const MapUpsampleParams& params, cudaStream_t stream) {
  const int64_t shared_bytes = std::min(kMostUpsampleBytes, shared_bytes_of_block(kUpsampleBlocks));
  return params.channels_last ? direction.template launch<T, V, Size, true>(params, shared_bytes, stream)
                              : direction.template launch<T, V, Size, false>(params, shared_bytes, stream);
}

template <typename T, typename V, typename Direction>
cudaError_t launch(const Direction& direction, const MapUpsampleParams& params, cudaStream_t stream) {
  constexpr int kSize = kVectorSize<T>;
  const bool is_vectorised =
      is_divisible<kSize>(params) && direction.is_aligned() && is_aligned(params, direction.values, kSize);
  if (!(is_vectorised && launch_format<T, V, kSize>(direction, params, stream)) &&
      !launch_format<T, V, 1>(direction, params, stream)) {
    return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

template <typename T, typename Direction>
cudaError_t dispatch_values(const Direction& direction, const MapUpsampleParams& params, cudaStream_t stream) {
  if (params.value_dtype == params.dtype) return launch<T, T>(direction, params, stream);
  return params.value_dtype == DType::kFloat32 ? launch<T, float>(direction, params, stream) : cudaErrorInvalidValue;
}

template <typename Direction>
cudaError_t dispatch(const Direction& direction, const MapUpsampleParams& params, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32: return launch<float, float>(direction, params, stream);
    case DType::kFloat16: return dispatch_values<__half>(direction, params, stream);
    case DType::kBFloat16: return dispatch_values<__nv_bfloat16>(direction, params, stream);
    default: return cudaErrorInvalidValue;
  }
}

template <typename T>
int64_t sums_of(const MapUpsampleParams& params) {
  const int64_t shared_bytes = std::min(kMostUpsampleBytes, shared_bytes_of_block(kUpsampleBlocks));
  const auto sums = [&]<int Size>(std::integral_constant<int, Size>) {
    return params.channels_last ? make_bwd_plan<T, Size, true>(params, shared_bytes).sums
                                : make_bwd_plan<T, Size, false>(params, shared_bytes).sums;
  };
  // Whether pointers will be aligned is not known yet.
  return std::max(sums(std::integral_constant<int, kVectorSize<T>>()), sums(std::integral_constant<int, 1>()));
}

}  // namespace

cudaError_t upsample_maps(const MapUpsampleParams& params, const MapUpsampleEpilogue& epilogue,
                          const LevelValues<const void>& values, void* map, cudaStream_t stream) {
  return dispatch(Forward{epilogue, values, map}, params, stream);
}

cudaError_t upsample_maps_backward(const MapUpsampleParams& params, const void* grad_map,
                                   const LevelValues<void>& grad_values, float* sums, cudaStream_t stream) {
  return dispatch(Backward{grad_map, grad_values, sums}, params, stream);
}

int64_t upsample_maps_sums(const MapUpsampleParams& params) {
  // Plans of both 16-bit types are the same.
  return params.dtype == DType::kFloat32 ? sums_of<float>(params) : sums_of<__half>(params);
}

}  // namespace pspfast::cuda
