// pyramid_upsample, forward: a block first mixes the rows of all bins for each row of its tile, into shared memory,
// then the columns of those for each pixel.
#pragma once

#include "pyramid_upsample_taps.h"

namespace pspfast::cuda {

// Neighbouring pixels of a row that a thread takes together on channels_last maps: they share most of their sources.
constexpr int kPixels = 4;

// Two neighbouring sources, kept while the positions that follow lie between them.
template <int Width>
struct Sources {
  int low = -1;
  Vector<float, Width> value_low, value_high;

  template <typename Stride>
  __device__ void add(const AxisTap& tap, const float* values, Stride stride, int bins, float (&sum)[Width]) {
    if (tap.low < 0) return;
    if (tap.low != low) {
      low = tap.low;
      value_low = load<Width>(values + low * stride);
      value_high = {};
      if (low + 1 < bins) value_high = load<Width>(values + (low + 1) * stride);
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) sum[i] += (1.f - tap.weight) * value_low.data[i];
    if (tap.weight == 0.f) return;
#pragma unroll
    for (int i = 0; i < Width; ++i) sum[i] += tap.weight * value_high.data[i];
  }
};

// Where the row mixes have the channel that is `within` the block's: neighbouring lanes read neighbouring 16 bytes.
template <int Size>
__device__ inline int mix_position(int lanes, int within) {
  constexpr int kWidth = Size < 4 ? Size : 4;
  return (within % Size / kWidth * lanes + within / Size) * kWidth + within % kWidth;
}

// mix [rows, entries, channels of the block] sums the bin rows and kernel rows. `values` starts at the block's first
// channel, of which there are `channels` left.
template <int Size, int Width>
__device__ inline void mix_rows(const PyramidUpsampleParams& params, const UpsamplePlan& plan, const LevelRange& range,
                                const AxisTap* row_taps, int rows, const float* __restrict__ values, int64_t channels,
                                float* mix) {
  const int k = params.kernel_size;
  const int entries = range.axis_bins * k;
  const int columns = plan.lanes * Size / Width;
  for (int task = threadIdx.x; task < entries * columns; task += kUpsampleThreads) {
    const int within = task % columns * Width;
    if (within >= channels) continue;
    const int e = task / columns;
    const Entry entry = entry_at(params, range, e);
    const float* column = values + entry.offset + within;
    const AxisTap* taps = row_taps + entry.level * plan.row_stride;
    float* to = mix + e * plan.lanes * Size + mix_position<Size>(plan.lanes, within);
    Sources<Width> sources[kMaxKernelSize];
    for (int row = 0; row < rows; ++row) {
      Vector<float, Width> sum{};
#pragma unroll
      for (int ky = 0; ky < kMaxKernelSize; ++ky) {
        if (ky < k) {
          sources[ky].add(taps[row + ky], column + int64_t{ky} * k * params.channels, entry.stride, entry.bins, sum.data);
        }
      }
      store<false>(to + row * entries * plan.lanes * Size, sum);
    }
  }
}

// Adds the levels at neighbouring pixels. `mix` is the row's, at the thread's channels; `taps` are the first pixel's.
template <int Pixels, int Width>
__device__ inline void mix_columns(const PyramidUpsampleParams& params, const LevelRange& range, const AxisTap* taps,
                                   int tap_stride, const float* mix, int mix_stride, float (&sums)[Pixels][Width]) {
  const int k = params.kernel_size;
  for (int level = range.begin; level < range.end; ++level) {
    const int bins = params.bins[level];
    for (int kx = 0; kx < k; ++kx) {
      Sources<Width> sources;
#pragma unroll
      for (int pixel = 0; pixel < Pixels; ++pixel) {
        sources.add(taps[pixel + kx], mix + kx * mix_stride, k * mix_stride, bins, sums[pixel]);
      }
    }
    taps += tap_stride;
    mix += bins * k * mix_stride;
  }
}

__device__ inline float rectified(float value, bool relu) { return relu && value < 0.f ? 0.f : value; }

// What a block works on.
struct UpsampleTile {
  int64_t image, row, col;
  int rows, cols;
  bool copies;
  int64_t group;    // level, zero where levels are summed
  int64_t channel;  // first: of the level, or of those that are copied

  __device__ UpsampleTile(const PyramidUpsampleParams& params, const UpsamplePlan& plan, int64_t block,
                          int block_channels) {
    const int64_t chunks = plan.copy_chunks + (params.sum_levels ? 1 : params.levels) * plan.chunks;
    int64_t chunk = block % chunks;
    block /= chunks;
    col = block % plan.tiles * plan.cols;
    block /= plan.tiles;
    row = block % plan.bands * plan.rows;
    image = block / plan.bands;
    rows = static_cast<int>(min(int64_t{plan.rows}, params.height - row));
    cols = static_cast<int>(min(int64_t{plan.cols}, params.width - col));
    copies = chunk < plan.copy_chunks;
    if (!copies) chunk -= plan.copy_chunks;
    group = copies ? 0 : chunk / plan.chunks;
    channel = (chunk - group * plan.chunks) * block_channels;
  }
};

inline int64_t upsample_fwd_blocks(const PyramidUpsampleParams& params, const UpsamplePlan& plan) {
  const int64_t chunks = plan.copy_chunks + (params.sum_levels ? 1 : params.levels) * plan.chunks;
  return params.batch * plan.bands * plan.tiles * chunks;
}

template <int Size>
int64_t upsample_fwd_bytes(const PyramidUpsampleParams& params, const UpsamplePlan& plan) {
  return plan.tap_bytes + int64_t{plan.rows} * entry_count(params) * plan.lanes * Size * sizeof(float);
}
