// pyramid_upsample, backward: a block goes through the rows of an image, a band of them at a time. It sums the columns
// of each row into the columns of all bins, in shared memory, and then the rows of those into the rows of all bins, in
// the output. Every sum belongs to one thread, and the map is read once.
#pragma once

#include "pyramid_upsample_taps.cuh"

namespace pspfast::cuda {

// Channels of a thread.
template <typename T, int Size, bool ChannelsLast>
constexpr int kBwdChannels = ChannelsLast ? Size : kVectorSize<T>;

// Contiguous maps are copied to shared memory first, channels innermost: a thread's channels of a pixel are one vector.
// This is the vector's place in its row: neighbouring threads write each 8th, which would meet in the same banks if the
// row did not leave out one behind 8. kPixels pixels lie between two such gaps.
constexpr int kTileRun = 8;
__host__ __device__ inline int tile_position(int vector) { return vector + vector / kTileRun; }

// The distance of rows, in vectors: neighbouring threads read neighbouring rows, from as many banks at an odd distance.
__host__ __device__ inline int tile_stride(const UpsamplePlan& plan) {
  return (tile_position(plan.cols * plan.lanes - 1) + 1) | 1;
}

template <typename T, int Size, bool ChannelsLast>
int64_t bwd_bytes(const PyramidUpsampleParams& params, const UpsamplePlan& plan) {
  constexpr int kChannels = kBwdChannels<T, Size, ChannelsLast>;
  const int64_t sum_bytes = entry_count(params) * plan.lanes * kChannels * int64_t{sizeof(float)};
  const int64_t tile_bytes = ChannelsLast ? 0 : tile_stride(plan) * kVectorBytes;
  return plan.tap_bytes + plan.rows * (sum_bytes + tile_bytes);
}

template <typename T, int Size, bool ChannelsLast>
UpsamplePlan make_bwd_plan(const PyramidUpsampleParams& params) {
  constexpr int kChannels = kBwdChannels<T, Size, ChannelsLast>;
  constexpr int kVectorPixels = kAccessPixels<Size, ChannelsLast>;
  UpsamplePlan plan{};
  plan.run_taps = kPixels;
  for (plan.lanes = kMostLanes<kChannels, ChannelsLast>;; plan.lanes /= 2) {
    cut_channels(params, plan.lanes * kChannels, plan);
    plan.blocks = params.batch * plan.slices;
    if (plan.lanes > kLeastLanes<kChannels, ChannelsLast> && plan.blocks < kEnoughUpsampleBlocks) continue;
    // So many rows give every thread a row and a kernel column of a level.
    const int tasks = plan.levels * params.kernel_size * plan.lanes;
    plan.rows = static_cast<int>(std::min<int64_t>(params.height, std::max(1, kUpsampleThreads / tasks)));
    for (;; plan.rows = (plan.rows + 1) / 2) {
      cut_image(params, kVectorPixels, plan);
      if (bwd_bytes<T, Size, ChannelsLast>(params, plan) <= kMaxSharedBytes) return plan;
      if (plan.rows <= row_unit(kVectorPixels)) break;
    }
  }
}

// Two neighbouring sums, kept while the positions that follow lie between them.
template <int Size, bool Global>
struct Sinks {
  int low = -1;
  Vector<float, Size> sum_low, sum_high;

  template <typename V, typename Stride>
  __device__ void add(const AxisTap& tap, const Vector<V, Size>& grad, float* sums, Stride stride, int bins) {
    if (tap.low < 0) return;
    if (tap.low != low) {
      flush(sums, stride, bins);
      low = tap.low;
      sum_low = load_floats<Size>(sums + low * stride);
      if (low + 1 < bins) sum_high = load_floats<Size>(sums + (low + 1) * stride);
    }
#pragma unroll
    for (int i = 0; i < Size; ++i) sum_low.data[i] += (1.f - tap.weight) * to_float(grad.data[i]);
    // Infinity times zero would be NaN.
    if (tap.weight == 0.f) return;
#pragma unroll
    for (int i = 0; i < Size; ++i) sum_high.data[i] += tap.weight * to_float(grad.data[i]);
  }

  template <typename Stride>
  __device__ void flush(float* sums, Stride stride, int bins) const {
    if (low < 0) return;
    store_floats<Global>(sums + low * stride, sum_low);
    if (low + 1 < bins) store_floats<Global>(sums + (low + 1) * stride, sum_high);
  }
};

// A block works on `rows` x `cols` pixels of an image.
struct GradTile {
  int row, col, rows, cols;
};

// Copies contiguous planes to the tile; `pixels` are its first pixel at the block's first channel. A thread takes
// Pixels neighbours in memory, of Size channels.
template <typename T, int Size, int Pixels>
__device__ inline void load_tile(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                 const ChannelSlice& slice, const GradTile& at, const T* __restrict__ pixels, T* tile) {
  const int64_t plane = params.height * params.width;
  const int vectors = at.rows * at.cols / Pixels;
  for (int task = threadIdx.x; task < vectors * plan.lanes; task += kUpsampleThreads) {
    const int lane = task / vectors;
    const int in_tile = task % vectors * Pixels;
    const T* from = pixels + in_tile / at.cols * params.width + in_tile % at.cols + lane * Size * plane;
    Vector<T, Pixels> planes[Size] = {};
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      if (lane * Size + i < slice.channels) planes[i] = load<Pixels>(from + i * plane);
    }
#pragma unroll
    for (int run = 0; run < Pixels; run += kRun<Pixels>) {
      const int row = (in_tile + run) / at.cols;
      const int col = (in_tile + run) % at.cols;
#pragma unroll
      for (int pixel = 0; pixel < kRun<Pixels>; ++pixel) {
        Vector<T, Size> vector;
#pragma unroll
        for (int i = 0; i < Size; ++i) vector.data[i] = planes[i].data[run + pixel];
        const int position = tile_position((col + pixel) * plan.lanes + lane);
        store<false>(tile + (row * tile_stride(plan) + position) * Size, vector);
      }
    }
  }
}

// Sums columns into sums [rows, entries, channels of the block], which hold those of earlier tiles of the band.
// pixels_at(row, col, channel) points to the first of kPixels pixels, col_stride apart.
template <typename T, int Size, typename Stride, typename PixelsAt>
__device__ inline void sum_columns(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                   const ChannelSlice& slice, const GradTile& at, const AxisTap* col_taps,
                                   PixelsAt pixels_at, Stride col_stride, float* sums) {
  const int k = params.kernel_size;
  const int block_channels = plan.lanes * Size;
  const int bin_stride = k * block_channels;
  for (int task = threadIdx.x; task < at.rows * plan.levels * k * plan.lanes; task += kUpsampleThreads) {
    const int within = task % plan.lanes * Size;
    if (within >= slice.channels) continue;
    const int kx = task / plan.lanes % k;
    const int level = task / (plan.lanes * k) % plan.levels;
    const int row = task / (plan.lanes * k * plan.levels);
    const int bins = params.bins[slice.begin + level];
    const int first_bin = row * slice.axis_bins + params.axis_offset[slice.begin + level] - slice.axis_begin;
    float* to = sums + (first_bin * k + kx) * block_channels + within;
    if (at.col == 0) {
      for (int bin = 0; bin < bins; ++bin) store_floats<false>(to + bin * bin_stride, Vector<float, Size>{});
    }
    const AxisTap* taps = col_taps + level * plan.col_stride + kx;
    Sinks<Size, false> sinks;
    for (int col = 0; col < at.cols; col += kPixels) {
      const T* from = pixels_at(row, col, within);
      Vector<T, Size> batch[kPixels];
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (col + i < at.cols) batch[i] = load<Size>(from + i * col_stride);
      }
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (col + i < at.cols) sinks.add(taps[col + i], batch[i], to, bin_stride, bins);
      }
    }
    sinks.flush(to, bin_stride, bins);
  }
}

// Adds the sums of a band to the output, where they belong to the same thread in every band. `grad_values` points to
// the image's at the block's first channel.
template <int Size, int Width>
__device__ inline void sum_rows(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                const ChannelSlice& slice, const GradTile& at, const AxisTap* row_taps,
                                const float* sums, float* grad_values) {
  const int k = params.kernel_size;
  const int entries = slice.axis_bins * k;
  const int block_channels = plan.lanes * Size;
  const int columns = block_channels / Width;
  for (int task = threadIdx.x; task < entries * columns; task += kUpsampleThreads) {
    const int within = task % columns * Width;
    if (within >= slice.channels) continue;
    const int e = task / columns;
    const Entry entry = entry_at(params, slice, e);
    float* to = grad_values + entry.offset + within;
    const AxisTap* taps = row_taps + entry.level * plan.row_stride;
    for (int ky = 0; ky < k; ++ky, to += k * params.channels) {
      if (at.row == 0) {
        for (int bin = 0; bin < entry.bins; ++bin) store<true>(to + bin * entry.stride, Vector<float, Width>{});
      }
      Sinks<Width, true> sinks;
      for (int row = 0; row < at.rows; ++row) {
        const auto grad = load<Width>(sums + (row * entries + e) * block_channels + within);
        sinks.add(taps[row + ky], grad, to, entry.stride, entry.bins);
      }
      sinks.flush(to, entry.stride, entry.bins);
    }
  }
}

// The gradient of the values: grad_map [N, map_channels, H, W], in memory [N, H, W, map_channels] if ChannelsLast, and
// grad_values [N, S, k, k, channels].
template <typename T, int Size, bool ChannelsLast>
__global__ void __launch_bounds__(kUpsampleThreads, kUpsampleBlocks)
    upsample_bwd_kernel(const __grid_constant__ PyramidUpsampleParams params, const __grid_constant__ UpsamplePlan plan,
                        const T* __restrict__ grad_map, float* grad_values) {
  constexpr int kChannels = kBwdChannels<T, Size, ChannelsLast>;
  PSPFAST_SHARED(shared);
  AxisTap* row_taps = reinterpret_cast<AxisTap*>(shared);        // [levels, row_stride]
  AxisTap* col_taps = row_taps + plan.levels * plan.row_stride;  // [levels, col_stride]
  float* sums = reinterpret_cast<float*>(shared + plan.tap_bytes);
  const int block_channels = plan.lanes * kChannels;
  const int height = static_cast<int>(params.height);
  const int width = static_cast<int>(params.width);
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const ChannelSlice slice(params, plan, block % plan.slices, block_channels);
    const int64_t image = block / plan.slices;
    T* tile = reinterpret_cast<T*>(sums + plan.rows * slice.axis_bins * params.kernel_size * block_channels);
    float* image_values = grad_values +
                          image * params.bin_count * params.kernel_size * params.kernel_size * params.channels +
                          slice.channel;
    GradTile at{};
    for (at.row = 0; at.row < height; at.row += plan.rows) {
      at.rows = min(plan.rows, height - at.row);
      fill_taps(params, slice, at.row, height, kPixels, plan.row_stride, row_taps);
      for (at.col = 0; at.col < width; at.col += plan.cols) {
        at.cols = min(plan.cols, width - at.col);
        fill_taps(params, slice, at.col, width, plan.run_taps, plan.col_stride, col_taps);
        const T* pixels = grad_map + first_element<ChannelsLast>(params, slice, image, at.row, at.col);
        if constexpr (ChannelsLast) {
          __syncthreads();
          const auto pixels_at = [&](int row, int col, int channel) {
            return pixels + (row * params.width + col) * params.map_channels + channel;
          };
          sum_columns<T, kChannels>(params, plan, slice, at, col_taps, pixels_at, params.map_channels, sums);
        } else {
          static_assert(kTileRun % (kPixels * kMostLanes<kChannels, ChannelsLast>) == 0);
          load_tile<T, kChannels, Size>(params, plan, slice, at, pixels, tile);
          __syncthreads();
          const auto pixels_at = [&](int row, int col, int channel) {
            const int position = tile_position(col * plan.lanes + channel / kChannels);
            return tile + (row * tile_stride(plan) + position) * kChannels;
          };
          sum_columns<T, kChannels>(params, plan, slice, at, col_taps, pixels_at, block_channels, sums);
        }
        __syncthreads();
      }
      sum_rows<kChannels, kValueWidth<kChannels, ChannelsLast>>(params, plan, slice, at, row_taps, sums, image_values);
      __syncthreads();
    }
  }
}

}  // namespace pspfast::cuda
