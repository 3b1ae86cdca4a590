// pyramid_upsample, forward: rows of the bins mixed in shared memory, columns of those mixed for pixels.
#pragma once

#include "pyramid_upsample_taps.cuh"

namespace pspfast::cuda {

// A thread's channels lie in shared memory 16 bytes at a time, those of a block's lanes side by side: neighbouring
// lanes read neighbouring 16 bytes. This is the place of channel `within` of the block.
template <int Size>
__device__ inline int mix_position(int lanes, int within) {
  constexpr int kWidth = kSharedWidth<Size>;
  return (within % Size / kWidth * lanes + within / Size) * kWidth + within % kWidth;
}

// Two neighbouring sources, kept while the positions that follow lie between them.
template <int Size>
struct Sources {
  int low = -1;
  Vector<float, Size> value_low, value_high;

  template <typename Stride>
  __device__ void add(const AxisTap& tap, const float* values, Stride stride, int width_stride, int bins,
                      Vector<float, Size>& sum) {
    if (tap.low < 0) return;
    if (tap.low != low) {
      low = tap.low;
      value_low = load_floats<Size>(values + low * stride, width_stride);
      if (low + 1 < bins) value_high = load_floats<Size>(values + (low + 1) * stride, width_stride);
    }
#pragma unroll
    for (int i = 0; i < Size; ++i) sum.data[i] += (1.f - tap.weight) * value_low.data[i];
    // Infinity times zero would be NaN.
    if (tap.weight == 0.f) return;
#pragma unroll
    for (int i = 0; i < Size; ++i) sum.data[i] += tap.weight * value_high.data[i];
  }
};

// Sums the bin rows and kernel rows of `rows` rows: mix [rows, entries, channels of the block]. `values` points to the
// image's at the block's first channel.
template <int Size, int Width>
__device__ inline void mix_rows(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                const ChannelSlice& slice, int rows, const AxisTap* row_taps,
                                const float* __restrict__ values, float* mix) {
  const int k = params.kernel_size;
  const int entries = slice.axis_bins * k;
  const int block_channels = plan.lanes * Size;
  const int columns = block_channels / Width;
  for (int task = threadIdx.x; task < entries * columns; task += kUpsampleThreads) {
    const int within = task % columns * Width;
    if (within >= slice.channels) continue;
    const int e = task / columns;
    const Entry entry = entry_at(params, slice, e);
    const float* column = values + entry.offset + within;
    const AxisTap* taps = row_taps + entry.level * plan.row_stride;
    float* to = mix + e * block_channels + mix_position<Size>(plan.lanes, within);
    for (int ky = 0; ky < k; ++ky, column += k * params.channels) {
      Sources<Width> sources;
      for (int row = 0; row < rows; ++row) {
        float* const at = to + row * entries * block_channels;
        Vector<float, Width> sum{};
        if (ky > 0) sum = load<Width>(at);
        sources.add(taps[row + ky], column, entry.stride, Width, entry.bins, sum);
        store<false>(at, sum);
      }
    }
  }
}

// Adds the levels at neighbouring pixels. `mix` points to the row's, at the thread's channels; `taps` to the first
// pixel's.
template <int Pixels, int Size>
__device__ inline void mix_columns(const PyramidUpsampleParams& params, const UpsamplePlan& plan,
                                   const ChannelSlice& slice, const AxisTap* taps, const float* mix,
                                   Vector<float, Size> (&sums)[Pixels]) {
  const int k = params.kernel_size;
  const int stride = plan.lanes * Size;
  for (int level = slice.begin; level < slice.end; ++level) {
    const int bins = params.bins[level];
    for (int kx = 0; kx < k; ++kx) {
      Sources<Size> sources;
#pragma unroll
      for (int pixel = 0; pixel < Pixels; ++pixel) {
        sources.add(taps[pixel + kx], mix + kx * stride, k * stride, plan.lanes * kSharedWidth<Size>, bins,
                    sums[pixel]);
      }
    }
    taps += plan.col_stride;
    mix += bins * k * stride;
  }
}

}  // namespace pspfast::cuda
