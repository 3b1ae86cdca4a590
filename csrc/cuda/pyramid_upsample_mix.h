// pyramid_upsample, forward: rows of the bins mixed in shared memory, columns of those mixed for pixels.
#pragma once

#include "pyramid_upsample_taps.h"

namespace pspfast::cuda {

// Two neighbouring sources, kept while the positions that follow lie between them.
template <int Width>
struct Sources {
  int low = -1;
  Vector<float, Width> value_low, value_high;

  template <typename Stride>
  __device__ void add(const AxisTap& tap, const float* values, Stride stride, int bins, Vector<float, Width>& sum) {
    if (tap.low < 0) return;
    if (tap.low != low) {
      low = tap.low;
      value_low = load<Width>(values + low * stride);
      value_high = {};
      if (low + 1 < bins) value_high = load<Width>(values + (low + 1) * stride);
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) sum.data[i] += (1.f - tap.weight) * value_low.data[i];
    if (tap.weight == 0.f) return;
#pragma unroll
    for (int i = 0; i < Width; ++i) sum.data[i] += tap.weight * value_high.data[i];
  }
};

// Where the row mixes have the channel that is `within` the block's: neighbouring lanes read neighbouring 16 bytes.
template <int Size>
__device__ inline int mix_position(int lanes, int within) {
  constexpr int kWidth = kSharedWidth<Size>;
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
    for (int ky = 0; ky < k; ++ky) {
      Sources<Width> sources;
      for (int row = 0; row < rows; ++row) {
        float* const at = to + row * entries * plan.lanes * Size;
        Vector<float, Width> sum{};
        if (ky > 0) sum = load<Width>(at);
        sources.add(taps[row + ky], column + ky * k * params.channels, entry.stride, entry.bins, sum);
        store<false>(at, sum);
      }
    }
  }
}

// Adds the levels at neighbouring pixels. `mix` is the row's, at the thread's channels; `taps` are the first pixel's.
template <int Pixels, int Width>
__device__ inline void mix_columns(const PyramidUpsampleParams& params, const LevelRange& range, const AxisTap* taps,
                                   int tap_stride, const float* mix, int mix_stride,
                                   Vector<float, Width> (&sums)[Pixels]) {
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

}  // namespace pspfast::cuda
