// pyramid_upsample, forward: a block first mixes the rows of all bins for each row of its tile, into shared memory,
// then the columns of those for each pixel. Every pixel is read, and written, once.
#pragma once

#include "pyramid_upsample_mix.h"

namespace pspfast::cuda {

// Neighbouring pixels of a row that a thread takes together on channels_last maps: they share most of their sources.
constexpr int kPixels = 4;

// Rows of a tile at most: those of a tile share what is read of the values.
constexpr int kTileRows = 8;
constexpr int kPlaneTileRows = 16;

inline int64_t fwd_bytes(const PyramidUpsampleParams& params, const UpsamplePlan& plan, int size) {
  const int64_t floats = (1 + plan.rows * entry_count(params)) * plan.lanes * size;
  return plan.tap_bytes + floats * int64_t{sizeof(float)};
}

template <int Size, bool ChannelsLast>
UpsamplePlan make_fwd_plan(const PyramidUpsampleParams& params, bool copies) {
  UpsamplePlan plan{};
  // 128 consecutive bytes with 16 a lane, 64 or 128 with single elements; never less than a sector of 32 or 16.
  plan.lanes = !ChannelsLast ? 1 : Size > 1 ? 8 : kWarpSize;
  const int least = !ChannelsLast ? 1 : Size > 1 ? 2 : 8;
  plan.rows = static_cast<int>(std::min<int64_t>(params.height, ChannelsLast ? kTileRows : kPlaneTileRows));
  for (;;) {
    complete_plan(params, ChannelsLast ? kPixels : 1, plan);
    plan.chunks = ceil_div(params.channels, plan.lanes * Size);
    plan.copy_chunks = copies ? ceil_div(params.first_channel, plan.lanes * Size) : 0;
    plan.blocks = params.batch * plan.bands * plan.tiles * (plan.copy_chunks + group_count(params) * plan.chunks);
    const bool fits = fwd_bytes(params, plan, Size) <= kMaxSharedBytes;
    if (plan.rows > 1 && (!fits || plan.blocks < kEnoughUpsampleBlocks)) {
      plan.rows = (plan.rows + 1) / 2;
    } else if (plan.lanes > 1 && (!fits || (plan.lanes > least && plan.blocks < kEnoughUpsampleBlocks))) {
      plan.lanes /= 2;
    } else {
      return plan;
    }
  }
}

// What a block works on.
struct UpsampleTile {
  int64_t image;
  int row, col, rows, cols;
  bool copies;
  int64_t group;              // level, zero where levels are summed
  int64_t channel, channels;  // first and last + 1: of the level, or of those that are copied
  int64_t map_channel;        // first, of the map
  const void* source;         // map that is read, or null, and its channels
  int64_t source_channels;

  __device__ UpsampleTile(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                          const PyramidUpsampleEpilogue& epilogue, int64_t block, int block_channels) {
    const int64_t chunks = plan.copy_chunks + group_count(params) * plan.chunks;
    const int64_t chunk = block % chunks;
    block /= chunks;
    col = static_cast<int>(block % plan.tiles) * plan.cols;
    block /= plan.tiles;
    row = static_cast<int>(block % plan.bands) * plan.rows;
    image = block / plan.bands;
    rows = min(plan.rows, static_cast<int>(params.height) - row);
    cols = min(plan.cols, static_cast<int>(params.width) - col);
    copies = chunk < plan.copy_chunks;
    if (copies) {
      group = 0;
      channel = map_channel = chunk * block_channels;
      channels = source_channels = params.first_channel;
      source = epilogue.copied;
    } else {
      group = (chunk - plan.copy_chunks) / plan.chunks;
      channel = (chunk - plan.copy_chunks) % plan.chunks * block_channels;
      channels = params.channels;
      source = epilogue.base;
      source_channels = params.map_channels;
      map_channel = params.first_channel + group * params.channels + channel;
    }
  }
};

template <typename T>
__device__ inline T finished(float sum, T base, bool relu) {
  sum += to_float(base);
  // NaN stays NaN.
  return from_float<T>(relu && sum < 0.f ? 0.f : sum);
}

// Neither `map` nor what is read is __restrict__ here: the base may be the map itself. A thread then reads just the
// elements that it writes, before it writes them.
template <typename T, int Size>
__device__ inline void write_channels(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                      const PyramidUpsampleEpilogue& epilogue, const UpsampleTile& tile,
                                      const LevelRange& range, const AxisTap* col_taps, const float* bias,
                                      const float* mix, T* map) {
  constexpr int kWidth = kSharedWidth<Size>;
  const int lane = threadIdx.x % plan.lanes;
  if (tile.channel + lane * Size >= tile.channels) return;
  const int64_t map_channel = tile.map_channel + lane * Size;
  const T* const source = static_cast<const T*>(tile.source);
  const int groups = (tile.cols + kPixels - 1) / kPixels;
  const int mix_stride = plan.lanes * Size;
  for (int task = threadIdx.x / plan.lanes; task < tile.rows * groups; task += kUpsampleThreads / plan.lanes) {
    const int row = task / groups;
    const int col = task % groups * kPixels;
    const int count = min(kPixels, tile.cols - col);
    const int64_t first = (tile.image * params.height + tile.row + row) * params.width + tile.col + col;
    Vector<T, Size> pixels[kPixels] = {};
    if (source) {
#pragma unroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        if (pixel < count) {
          pixels[pixel] = load<Size>(source + (first + pixel) * tile.source_channels + map_channel);
        }
      }
    }
    if (!tile.copies) {
      const float* row_mix = mix + row * range.axis_bins * params.kernel_size * mix_stride + lane * kWidth;
#pragma unroll
      for (int part = 0; part < Size; part += kWidth) {
        Vector<float, kWidth> sums[kPixels];
#pragma unroll
        for (int pixel = 0; pixel < kPixels; ++pixel)
          sums[pixel] = load<kWidth>(bias + lane * kWidth + part * plan.lanes);
        mix_columns(params, range, col_taps + col, plan.col_stride, row_mix + part * plan.lanes, mix_stride, sums);
#pragma unroll
        for (int pixel = 0; pixel < kPixels; ++pixel) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            T& value = pixels[pixel].data[part + i];
            value = finished(sums[pixel].data[i], value, epilogue.relu);
          }
        }
      }
    }
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      if (pixel < count) store<true>(map + (first + pixel) * params.map_channels + map_channel, pixels[pixel]);
    }
  }
}

// Lanes along pixels; a thread takes all channels of the block at one of them.
template <typename T>
__device__ inline void write_planes(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                    const PyramidUpsampleEpilogue& epilogue, const UpsampleTile& tile,
                                    const LevelRange& range, const AxisTap* col_taps, const float* bias,
                                    const float* mix, T* map) {
  constexpr int kWidth = kSharedWidth<kPlaneChannels>;
  const int64_t plane = params.height * params.width;
  const T* const source = static_cast<const T*>(tile.source);
  const int count = static_cast<int>(min(int64_t{kPlaneChannels}, tile.channels - tile.channel));
  for (int task = threadIdx.x; task < tile.rows * tile.cols; task += kUpsampleThreads) {
    const int row = task / tile.cols;
    const int col = task % tile.cols;
    const int64_t pixel = (tile.row + row) * params.width + tile.col + col;
    T values[kPlaneChannels] = {};
    if (source) {
      const T* from = source + (tile.image * tile.source_channels + tile.map_channel) * plane + pixel;
#pragma unroll
      for (int i = 0; i < kPlaneChannels; ++i) {
        if (i < count) values[i] = from[i * plane];
      }
    }
    if (!tile.copies) {
      const float* row_mix = mix + row * range.axis_bins * params.kernel_size * kPlaneChannels;
#pragma unroll
      for (int part = 0; part < kPlaneChannels; part += kWidth) {
        Vector<float, kWidth> sums[] = {load<kWidth>(bias + part)};
        mix_columns(params, range, col_taps + col, plan.col_stride, row_mix + part, kPlaneChannels, sums);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          T& value = values[part + i];
          value = finished(sums[0].data[i], value, epilogue.relu);
        }
      }
    }
    T* to = map + (tile.image * params.map_channels + tile.map_channel) * plane + pixel;
#pragma unroll
    for (int i = 0; i < kPlaneChannels; ++i) {
      if (i < count) to[i * plane] = values[i];
    }
  }
}

template <typename T, int Size, bool ChannelsLast>
__global__ void __launch_bounds__(kUpsampleThreads, kUpsampleBlocks)
    upsample_fwd_kernel(const __grid_constant__ PyramidUpsampleParams params, const __grid_constant__ UpsamplePlan plan,
                        const __grid_constant__ PyramidUpsampleEpilogue epilogue, const float* __restrict__ values,
                        T* map) {
  PSPFAST_SHARED(shared);
  AxisTap* row_taps = reinterpret_cast<AxisTap*>(shared);           // [levels, row_stride]
  AxisTap* col_taps = row_taps + plan.levels * plan.row_stride;     // [levels, col_stride]
  float* bias = reinterpret_cast<float*>(shared + plan.tap_bytes);  // [channels of the block]
  float* mix = bias + plan.lanes * Size;
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const UpsampleTile tile(params, plan, epilogue, block, plan.lanes * Size);
    const LevelRange range(params, tile.group);
    if (!tile.copies) {
      fill_taps(params, range, tile.row, static_cast<int>(params.height), plan.row_stride, row_taps);
      fill_taps(params, range, tile.col, static_cast<int>(params.width), plan.col_stride, col_taps);
      for (int within = threadIdx.x; within < plan.lanes * Size; within += kUpsampleThreads) {
        const bool has_bias = epilogue.bias && tile.channel + within < tile.channels;
        bias[mix_position<Size>(plan.lanes, within)] =
            has_bias ? to_float(static_cast<const T*>(epilogue.bias)[tile.channel + within]) : 0.f;
      }
      __syncthreads();
      const float* image =
          values + tile.image * params.bin_count * params.kernel_size * params.kernel_size * params.channels;
      mix_rows<Size, kValueWidth<Size, ChannelsLast>>(params, plan, range, row_taps, tile.rows, image + tile.channel,
                                                      params.channels - tile.channel, mix);
      __syncthreads();
    }
    if constexpr (ChannelsLast) {
      write_channels<T, Size>(params, plan, epilogue, tile, range, col_taps, bias, mix, map);
    } else {
      write_planes<T>(params, plan, epilogue, tile, range, col_taps, bias, mix, map);
    }
    __syncthreads();
  }
}

}  // namespace pspfast::cuda
