// upsample_maps, forward: a block first mixes the rows of all sources for each row of its tile, into shared memory,
// then the columns of those for each pixel. Every pixel of the base is read, and of the map written, once.
#pragma once

#include "upsample_maps_mix.cuh"

namespace pspfast::cuda {

// A tile has at most this many rows: values are read once for all of them.
constexpr int kTileRows = 16;

// Channels of a thread.
template <int Size, bool ChannelsLast>
constexpr int kFwdChannels = ChannelsLast ? Size
                             : Size > 1   ? kPlaneChannels / 2
                                          : kPlaneChannels;

inline int64_t fwd_bytes(const ForwardPlan& plan, int size) {
  const int64_t floats = (1 + int64_t{plan.rows} * plan.entries) * plan.lanes * size;
  return plan.table_bytes + floats * int64_t{sizeof(float)};
}

// Lays out tiles of at most plan.rows x plan.cols pixels, evenly cut. Returns how many values are read for each channel
// and each kernel tap of an image.
inline int64_t cut_fwd_tiles(const MapUpsampleParams& params, int access_pixels, int block_channels,
                             ForwardPlan& plan) {
  const int64_t even_rows = ceil_div(params.height, ceil_div(params.height, plan.rows));
  plan.rows = static_cast<int>(round_up(even_rows, row_unit(access_pixels)));
  plan.bands = ceil_div(params.height, plan.rows);
  const int64_t even_cols = ceil_div(params.width, ceil_div(params.width, plan.cols));
  plan.cols = static_cast<int>(round_up(even_cols, std::max(kPixels, access_pixels)));
  plan.tiles = ceil_div(params.width, plan.cols);
  plan.levels = params.sum_levels ? params.levels : 1;
  plan.chunks = ceil_div(params.channels, block_channels);
  plan.blocks = params.batch * plan.bands * plan.tiles * plan.chunks * (params.levels / plan.levels);
  plan.row_stride = plan.rows + params.kernel_size - 1;
  plan.col_stride = plan.cols / kPixels * plan.run_taps + params.kernel_size - 1;
  int64_t values = 0;
  int source_cols = 0;
  for (int level = 0; level < params.levels; ++level) {
    const int cols = col_axis(params, level).most_sources(plan.cols);
    plan.source_cols[level] = cols;
    plan.first_col[level] = params.sum_levels ? source_cols : 0;
    source_cols = params.sum_levels ? source_cols + cols : std::max(source_cols, cols);
    values += int64_t{row_axis(params, level).most_sources(plan.rows)} * cols;
  }
  if (!params.sum_levels) std::fill_n(plan.source_cols, params.levels, source_cols);
  plan.entries = source_cols * params.kernel_size;
  const int64_t taps = int64_t{plan.levels} * (plan.row_stride + plan.col_stride + 1);
  plan.table_bytes = static_cast<int>(round_up(taps * sizeof(AxisTap), kVectorBytes));
  return values * plan.bands * plan.tiles;
}

// The plan that reads the least values of those that fit into shared memory.
template <int Size, bool ChannelsLast>
ForwardPlan make_fwd_plan(const MapUpsampleParams& params, int64_t shared_bytes) {
  constexpr int kChannels = kFwdChannels<Size, ChannelsLast>;
  constexpr int kVectorPixels = kAccessPixels<Size, ChannelsLast>;
  // Vectors that lie in two rows ask for whole rows.
  const bool whole_rows = !ChannelsLast && params.width % kVectorPixels != 0;
  ForwardPlan best{};
  double least = 0;
  for (int lanes = kMostLanes<kChannels, ChannelsLast>; lanes >= kLeastLanes<kChannels, ChannelsLast>; lanes /= 2) {
    for (int cols = kTileCols; cols >= (whole_rows ? kTileCols : 2 * kPixels); cols /= 2) {
      if (!whole_rows && cols > 2 * kPixels && cols / 2 >= params.width) continue;
      for (int rows = kTileRows; rows > 0; rows /= 2) {
        if (rows / 2 >= params.height) continue;
        ForwardPlan plan{.lanes = lanes, .rows = rows, .cols = cols};
        // Neighbouring threads read the taps of neighbouring vectors: from as many banks, at an odd distance.
        plan.run_taps = kVectorPixels > 1 ? (kPixels + params.kernel_size - 1) | 1 : kPixels;
        const auto values = static_cast<double>(cut_fwd_tiles(params, kVectorPixels, lanes * kChannels, plan));
        if (fwd_bytes(plan, kChannels) > shared_bytes) continue;
        const double reads = cost_of_plan(values, plan.blocks, kEnoughBlocks);
        if (best.blocks == 0 || reads < least) best = plan, least = reads;
      }
    }
  }
  return best;
}

// A block works on `rows` x `cols` pixels of an image.
struct UpsampleTile {
  int64_t image;
  int row, col, rows, cols;

  __device__ UpsampleTile(const MapUpsampleParams& params, const ForwardPlan& plan, int64_t tile)
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
__device__ inline void write_channels(const MapUpsampleParams& params, const ForwardPlan& plan,
                                      const ChannelSlice& slice, const UpsampleTile& tile, const AxisTap* col_taps,
                                      const float* bias, const float* mix, int64_t first, const T* __restrict__ base,
                                      bool relu, T* __restrict__ map) {
  constexpr int kWidth = kSharedWidth<Size>;
  const int lane = threadIdx.x % plan.lanes;
  if (lane * Size >= slice.channels) return;
  const int groups = static_cast<int>(ceil_div(tile.cols, kPixels));
  const int row_stride = plan.entries * plan.lanes * Size;
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
    mix_columns(params, plan, col_taps + col, mix + row * row_stride + lane * kWidth, sums);
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
__device__ inline void write_planes(const MapUpsampleParams& params, const ForwardPlan& plan, const ChannelSlice& slice,
                                    const UpsampleTile& tile, const AxisTap* col_taps, const float* bias,
                                    const float* mix, int64_t first, const T* __restrict__ base, bool relu,
                                    T* __restrict__ map) {
  constexpr int kLanes = kPlaneChannels / Size;
  const int lane = threadIdx.x % kLanes;
  const int channels = min(Size, slice.channels - lane * Size);
  if (channels <= 0) return;
  const int64_t plane = params.height * params.width;
  const int row_stride = plan.entries * kPlaneChannels;
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
      mix_columns(params, plan, col_taps + col / kPixels * plan.run_taps + col % kPixels,
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

// Interpolates values into map, adds base and bias [channels], which may be null, and applies the ReLU. map and base
// are [N, map_channels, H, W], in memory [N, H, W, map_channels] if ChannelsLast.
template <typename T, typename V, int Size, bool ChannelsLast>
__global__ void __launch_bounds__(kUpsampleThreads, kUpsampleBlocks)
    upsample_fwd_kernel(const __grid_constant__ MapUpsampleParams params, const __grid_constant__ ForwardPlan plan,
                        const T* __restrict__ base, const T* __restrict__ bias, bool relu,
                        const __grid_constant__ LevelValues<const void> values, T* __restrict__ map) {
  constexpr int kChannels = kFwdChannels<Size, ChannelsLast>;
  PSPFAST_SHARED(shared);
  AxisTap* row_taps = reinterpret_cast<AxisTap*>(shared);                                 // [levels, row_stride]
  AxisTap* col_taps = row_taps + plan.levels * plan.row_stride;                           // [levels, col_stride]
  int* first_sources = reinterpret_cast<int*>(col_taps + plan.levels * plan.col_stride);  // [levels, 2]
  float* shared_bias = reinterpret_cast<float*>(shared + plan.table_bytes);               // [channels of the block]
  const int block_channels = plan.lanes * kChannels;
  float* mix = shared_bias + block_channels;
  const int64_t slices = plan.chunks * (params.levels / plan.levels);
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const int begin = static_cast<int>(block % slices / plan.chunks);
    const ChannelSlice slice(params, begin, begin + plan.levels, block % plan.chunks, block_channels);
    const UpsampleTile tile(params, plan, block / slices);
    for (int in_block = 0; in_block < plan.levels; ++in_block) {
      const InterpolatedAxis rows = row_axis(params, begin + in_block), cols = col_axis(params, begin + in_block);
      const int first_row = rows.first_source(tile.row), first_col = cols.first_source(tile.col);
      if (threadIdx.x == 0) {
        first_sources[2 * in_block] = first_row;
        first_sources[2 * in_block + 1] = first_col;
      }
      fill_taps(rows, tile.row, first_row, plan.row_stride, plan.row_stride, row_taps + in_block * plan.row_stride);
      fill_taps(cols, tile.col, first_col, plan.run_taps, plan.col_stride, col_taps + in_block * plan.col_stride);
    }
    static_assert(kMostLanes<kChannels, ChannelsLast> * kChannels <= kUpsampleThreads);
    if (const int within = threadIdx.x; within < block_channels) {
      const bool has_bias = bias && within < slice.channels;
      shared_bias[mix_position<kChannels>(plan.lanes, within)] =
          has_bias ? to_float(bias[slice.channel + within]) : 0.f;
    }
    __syncthreads();
    mix_rows<kChannels, kValueWidth<V, kChannels, ChannelsLast>, V>(params, values, plan, slice, tile.image, tile.rows,
                                                                    row_taps, first_sources, mix);
    __syncthreads();
    const int64_t first = map_index<ChannelsLast>(params, tile.image, slice.map_channel, tile.row, tile.col);
    if constexpr (ChannelsLast) {
      write_channels<T, Size>(params, plan, slice, tile, col_taps, shared_bias, mix, first, base, relu, map);
    } else {
      write_planes<T, kChannels, Size>(params, plan, slice, tile, col_taps, shared_bias, mix, first, base, relu, map);
    }
    __syncthreads();
  }
}

}  // namespace pspfast::cuda
