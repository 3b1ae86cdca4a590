// upsample_maps, forward: rows of the sources mixed in shared memory, columns of those mixed for pixels.
#pragma once

#include "upsample_maps_taps.cuh"

namespace pspfast::cuda {

// How the forward cuts the work: a block takes `lanes` x Size channels of one image, of all levels where they are
// summed and of one where they are not, and `rows` x `cols` pixels.
struct ForwardPlan {
  int64_t blocks;
  int64_t chunks;        // chunks that a level's channels are cut into
  int64_t bands, tiles;  // bands of rows, and tiles of columns, of an image
  int lanes, rows, cols;
  int levels;                   // of a block
  int row_stride, col_stride;   // taps of a level along the rows and the columns of a tile
  int run_taps;                 // from the first tap of kPixels columns to that of the next
  int first_col[kMaxLevels];    // of a level among the source columns of a tile, counted over the levels of a block
  int source_cols[kMaxLevels];  // of a level, at most, in a tile
  int entries;                  // source columns of a tile times columns of the kernel
  int table_bytes;              // of taps and first sources
};

// The levels and channels that a block works on.
struct ChannelSlice {
  int begin, end;       // levels
  int64_t channel;      // first, of the values
  int64_t map_channel;  // first, of the map
  int channels;         // how many

  __device__ ChannelSlice(const MapUpsampleParams& params, int begin, int end, int64_t chunk, int block_channels)
      : begin(begin),
        end(end),
        channel(chunk * block_channels),
        map_channel(params.first_channel + (params.sum_levels ? 0 : begin * params.channels) + channel),
        channels(static_cast<int>(min(int64_t{block_channels}, params.channels - channel))) {}
};

// A thread's channels lie in shared memory 16 bytes at a time, those of a block's lanes side by side: neighbouring
// lanes read neighbouring 16 bytes. This is the place of channel `within` of the block.
template <int Size>
__device__ inline int mix_position(int lanes, int within) {
  constexpr int kWidth = kSharedWidth<Size>;
  return (within % Size / kWidth * lanes + within / Size) * kWidth + within % kWidth;
}

template <int Size, typename V>
__device__ inline Vector<float, Size> load_values(const V* from) {
  const auto loaded = load<Size>(from);
  Vector<float, Size> values;
#pragma unroll
  for (int i = 0; i < Size; ++i) values.data[i] = to_float(loaded.data[i]);
  return values;
}

// Two neighbouring sources, kept while the positions that follow lie between them.
template <int Size>
struct Sources {
  int low = -1;
  Vector<float, Size> value_low, value_high;

  // load_at(source) is the value of a source.
  template <typename LoadAt>
  __device__ void add(const AxisTap& tap, const LoadAt& load_at, Vector<float, Size>& sum) {
    if (tap.low < 0) return;
    if (tap.low != low) {
      low = tap.low;
      value_low = load_at(low);
      // A position between these two may follow.
      value_high = load_at(low + 1);
    }
#pragma unroll
    for (int i = 0; i < Size; ++i) sum.data[i] += (1.f - tap.weight) * value_low.data[i];
    // Infinity times zero would be NaN.
    if (tap.weight == 0.f) return;
#pragma unroll
    for (int i = 0; i < Size; ++i) sum.data[i] += tap.weight * value_high.data[i];
  }
};

// Sums the source rows and kernel rows of `rows` rows: mix [rows, entries, channels of the block]. Accesses of Width
// values; first_sources [levels, 2] are those of the tile's rows and columns.
template <int Size, int Width, typename V>
__device__ inline void mix_rows(const MapUpsampleParams& params, const LevelValues<const void>& values,
                                const ForwardPlan& plan, const ChannelSlice& slice, int64_t image, int rows,
                                const AxisTap* row_taps, const int* first_sources, float* mix) {
  const int k = params.kernel_size;
  const int block_channels = plan.lanes * Size;
  const int columns = block_channels / Width;
  const int64_t row_values = int64_t{k} * k * params.channels;
  for (int task = threadIdx.x; task < plan.entries * columns; task += kUpsampleThreads) {
    const int within = task % columns * Width;
    const int entry = task / columns;
    int in_block = 0;
    while (in_block + 1 < plan.levels && entry / k >= plan.first_col[in_block + 1]) ++in_block;
    const int level = slice.begin + in_block;
    const int col = first_sources[2 * in_block + 1] + entry / k - plan.first_col[in_block];
    const int cols = params.cols[level];
    if (within >= slice.channels || col >= cols) continue;
    const int last_row = params.rows[level] - 1 - first_sources[2 * in_block];
    const V* column = static_cast<const V*>(values.data[level]) + image * values.image_stride[level] +
                      value_index(params, level, first_sources[2 * in_block], col, 0, entry % k) + slice.channel +
                      within;
    const AxisTap* taps = row_taps + in_block * plan.row_stride;
    float* const to = mix + entry * block_channels + mix_position<Size>(plan.lanes, within);
    for (int ky = 0; ky < k; ++ky, column += k * params.channels) {
      Sources<Width> sources;
      const auto load_at = [&](int source) {
        return load_values<Width>(column + min(source, last_row) * cols * row_values);
      };
      for (int row = 0; row < rows; ++row) {
        float* const at = to + row * plan.entries * block_channels;
        Vector<float, Width> sum{};
        if (ky > 0) sum = load_floats<Width>(at, plan.lanes * kSharedWidth<Size>);
        sources.add(taps[row + ky], load_at, sum);
        store_floats<Width>(at, sum, plan.lanes * kSharedWidth<Size>);
      }
    }
  }
}

// Adds the levels at neighbouring pixels. `mix` points to the row's, at the thread's channels; `taps` to the first
// pixel's.
template <int Pixels, int Size>
__device__ inline void mix_columns(const MapUpsampleParams& params, const ForwardPlan& plan, const AxisTap* taps,
                                   const float* mix, Vector<float, Size> (&sums)[Pixels]) {
  const int k = params.kernel_size;
  const int stride = plan.lanes * Size;
  for (int in_block = 0; in_block < plan.levels; ++in_block, taps += plan.col_stride) {
    const int last_col = plan.source_cols[in_block] - 1;
    for (int kx = 0; kx < k; ++kx) {
      const float* const column = mix + (plan.first_col[in_block] * k + kx) * stride;
      Sources<Size> sources;
      const auto load_at = [&](int source) {
        return load_floats<Size>(column + min(source, last_col) * k * stride, plan.lanes * kSharedWidth<Size>);
      };
#pragma unroll
      for (int pixel = 0; pixel < Pixels; ++pixel) sources.add(taps[pixel + kx], load_at, sums[pixel]);
    }
  }
}

}  // namespace pspfast::cuda
