// pyramid_upsample, forward: a block first mixes the rows of all bins for each row of its tile, into shared memory,
// then the columns of those for each pixel. Every pixel of the base is read, and of the map written, once.
#pragma once

#include "pyramid_upsample_mix.cuh"

namespace pspfast::cuda {

// A tile has at most this many rows: values are read once for all of them, which is then less than what is written.
constexpr int kTileRows = 16;

// Channels of a thread.
template <int Size, bool ChannelsLast>
constexpr int kFwdChannels = ChannelsLast ? Size
                             : Size > 1   ? kPlaneChannels / 2
                                          : kPlaneChannels;

inline int64_t fwd_bytes(const PyramidUpsampleParams& params, const UpsamplePlan& plan, int size) {
  const int64_t floats = (1 + plan.rows * entry_count(params)) * plan.lanes * size;
  return plan.tap_bytes + floats * int64_t{sizeof(float)};
}

template <int Size, bool ChannelsLast>
UpsamplePlan make_fwd_plan(const PyramidUpsampleParams& params) {
  constexpr int kChannels = kFwdChannels<Size, ChannelsLast>;
  constexpr int kVectorPixels = kAccessPixels<Size, ChannelsLast>;
  UpsamplePlan plan{};
  plan.lanes = kMostLanes<kChannels, ChannelsLast>;
  plan.rows = static_cast<int>(std::min<int64_t>(params.height, kTileRows));
  // Neighbouring threads read the taps of neighbouring vectors: from as many banks, at an odd distance.
  plan.run_taps = kVectorPixels > 1 ? (kPixels + params.kernel_size - 1) | 1 : kPixels;
  for (;;) {
    cut_channels(params, plan.lanes * kChannels, plan);
    cut_image(params, kVectorPixels, plan);
    plan.blocks = params.batch * plan.bands * plan.tiles * plan.slices;
    const bool fits = fwd_bytes(params, plan, kChannels) <= kMaxSharedBytes;
    const bool enough = plan.blocks >= kEnoughUpsampleBlocks;
    if (plan.rows > row_unit(kVectorPixels) && !(fits && enough)) {
      plan.rows = (plan.rows + 1) / 2;
    } else if (!fits || (plan.lanes > kLeastLanes<kChannels, ChannelsLast> && !enough)) {
      // One lane of the fewest rows fits: 64 bins of 3 kernel columns and 8 channels take 6 KB a row.
      plan.lanes /= 2;
    } else {
      return plan;
    }
  }
}

// A block works on `rows` x `cols` pixels of an image.
struct UpsampleTile {
  int64_t image;
  int row, col, rows, cols;

  __device__ UpsampleTile(const PyramidUpsampleParams& params, const UpsamplePlan& plan, int64_t tile)
      : image(tile / plan.tiles / plan.bands),
        row(static_cast<int>(tile / plan.tiles % plan.bands) * plan.rows),
        col(static_cast<int>(tile % plan.tiles) * plan.cols),
        rows(min(plan.rows, static_cast<int>(params.height) - row)),
        cols(min(plan.cols, static_cast<int>(params.width) - col)) {}
};

template <typename T>
__device__ inline T finished(float sum, T base, bool relu) {
  sum += to_float(base);
  // NaN stays NaN.
  return from_float<T>(relu && sum < 0.f ? 0.f : sum);
}

// Writes a tile of a channels_last map. `first` is the index of the tile's first pixel at the block's first channel, in
// the map and in the base, which may be null.
template <typename T, int Size>
__device__ inline void write_channels(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                      const ChannelSlice& slice, const UpsampleTile& tile, const AxisTap* col_taps,
                                      const float* bias, const float* mix, int64_t first, const T* __restrict__ base,
                                      bool relu, T* __restrict__ map) {
  constexpr int kWidth = kSharedWidth<Size>;
  const int lane = threadIdx.x % plan.lanes;
  if (lane * Size >= slice.channels) return;
  const int groups = static_cast<int>(ceil_div(tile.cols, kPixels));
  const int row_stride = slice.axis_bins * params.kernel_size * plan.lanes * Size;
  for (int task = threadIdx.x / plan.lanes; task < tile.rows * groups; task += kUpsampleThreads / plan.lanes) {
    const int row = task / groups;
    const int col = task % groups * kPixels;
    const int count = min(kPixels, tile.cols - col);
    const int64_t at = first + (row * params.width + col) * params.map_channels + lane * Size;
    Vector<T, Size> pixels[kPixels] = {};
    if (base) {
#pragma unroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        if (pixel < count) pixels[pixel] = load<Size>(base + at + pixel * params.map_channels);
      }
    }
    Vector<float, Size> sums[kPixels];
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      sums[pixel] = load_floats<Size>(bias + lane * kWidth, plan.lanes * kWidth);
    }
    mix_columns(params, plan, slice, col_taps + col, mix + row * row_stride + lane * kWidth, sums);
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel) {
#pragma unroll
      for (int i = 0; i < Size; ++i) {
        T& value = pixels[pixel].data[i];
        value = finished(sums[pixel].data[i], value, relu);
      }
      if (pixel < count) store<true>(map + at + pixel * params.map_channels, pixels[pixel]);
    }
  }
}

// Writes a tile of a contiguous map, as write_channels does. A thread takes Pixels neighbours in memory, of Size
// channels.
template <typename T, int Size, int Pixels>
__device__ inline void write_planes(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                    const ChannelSlice& slice, const UpsampleTile& tile, const AxisTap* col_taps,
                                    const float* bias, const float* mix, int64_t first, const T* __restrict__ base,
                                    bool relu, T* __restrict__ map) {
  constexpr int kLanes = kPlaneChannels / Size;
  const int lane = threadIdx.x % kLanes;
  const int channels = min(Size, slice.channels - lane * Size);
  if (channels <= 0) return;
  const int64_t plane = params.height * params.width;
  const int row_stride = slice.axis_bins * params.kernel_size * kPlaneChannels;
  const int vectors = tile.rows * tile.cols / Pixels;
  for (int task = threadIdx.x / kLanes; task < vectors; task += kUpsampleThreads / kLanes) {
    const int in_tile = task * Pixels;
    const int64_t at = first + in_tile / tile.cols * params.width + in_tile % tile.cols + lane * Size * plane;
    Vector<T, Pixels> planes[Size] = {};
    if (base) {
#pragma unroll
      for (int i = 0; i < Size; ++i) {
        if (i < channels) planes[i] = load<Pixels>(base + at + i * plane);
      }
    }
#pragma unroll
    for (int run = 0; run < Pixels; run += kRun<Pixels>) {
      const int row = (in_tile + run) / tile.cols;
      const int col = (in_tile + run) % tile.cols;
      Vector<float, Size> sums[kRun<Pixels>];
#pragma unroll
      for (int pixel = 0; pixel < kRun<Pixels>; ++pixel) sums[pixel] = load_floats<Size>(bias + lane * Size);
      mix_columns(params, plan, slice, col_taps + col / kPixels * plan.run_taps + col % kPixels,
                  mix + row * row_stride + lane * Size, sums);
#pragma unroll
      for (int pixel = 0; pixel < kRun<Pixels>; ++pixel) {
#pragma unroll
        for (int i = 0; i < Size; ++i) {
          T& value = planes[i].data[run + pixel];
          value = finished(sums[pixel].data[i], value, relu);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      if (i < channels) store<true>(map + at + i * plane, planes[i]);
    }
  }
}

// Upsamples values [N, S, k, k, channels] into map, adds base and bias [channels], which may be null, and applies the
// ReLU. map and base are [N, map_channels, H, W], in memory [N, H, W, map_channels] if ChannelsLast.
template <typename T, int Size, bool ChannelsLast>
__global__ void __launch_bounds__(kUpsampleThreads, kUpsampleBlocks)
    upsample_fwd_kernel(const __grid_constant__ PyramidUpsampleParams params, const __grid_constant__ UpsamplePlan plan,
                        const T* __restrict__ base, const T* __restrict__ bias, bool relu,
                        const float* __restrict__ values, T* __restrict__ map) {
  constexpr int kChannels = kFwdChannels<Size, ChannelsLast>;
  PSPFAST_SHARED(shared);
  AxisTap* row_taps = reinterpret_cast<AxisTap*>(shared);                  // [levels, row_stride]
  AxisTap* col_taps = row_taps + plan.levels * plan.row_stride;            // [levels, col_stride]
  float* shared_bias = reinterpret_cast<float*>(shared + plan.tap_bytes);  // [channels of the block]
  const int block_channels = plan.lanes * kChannels;
  float* mix = shared_bias + block_channels;
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const ChannelSlice slice(params, plan, block % plan.slices, block_channels);
    const UpsampleTile tile(params, plan, block / plan.slices);
    fill_taps(params, slice, tile.row, static_cast<int>(params.height), kPixels, plan.row_stride, row_taps);
    fill_taps(params, slice, tile.col, static_cast<int>(params.width), plan.run_taps, plan.col_stride, col_taps);
    static_assert(kMostLanes<kChannels, ChannelsLast> * kChannels <= kUpsampleThreads);
    if (const int within = threadIdx.x; within < block_channels) {
      const bool has_bias = bias && within < slice.channels;
      shared_bias[mix_position<kChannels>(plan.lanes, within)] =
          has_bias ? to_float(bias[slice.channel + within]) : 0.f;
    }
    __syncthreads();
    const float* image =
        values + tile.image * params.bin_count * params.kernel_size * params.kernel_size * params.channels;
    mix_rows<kChannels, kValueWidth<kChannels, ChannelsLast>>(params, plan, slice, tile.rows, row_taps,
                                                              image + slice.channel, mix);
    __syncthreads();
    const int64_t first = first_element<ChannelsLast>(params, slice, tile.image, tile.row, tile.col);
    if constexpr (ChannelsLast) {
      write_channels<T, Size>(params, plan, slice, tile, col_taps, shared_bias, mix, first, base, relu, map);
    } else {
      write_planes<T, kChannels, Size>(params, plan, slice, tile, col_taps, shared_bias, mix, first, base, relu, map);
    }
    __syncthreads();
  }
}

}  // namespace pspfast::cuda
