// pyramid_upsample, both directions: a block's levels and channels follow from its number, and tables of interpolation
// taps lie in shared memory.
#pragma once

#include <algorithm>

#include "../pyramid_upsample.h"
#include "launch.h"
#include "vector.cuh"

namespace pspfast::cuda {

constexpr int kUpsampleThreads = 256;
// Blocks resident on a multiprocessor: so many leave a thread 128 registers. The forward needs 64 of them for the sums
// of kPixels pixels, two sources and the base, 8 channels each.
constexpr int kUpsampleBlocks = 2;
// Columns of a tile at most: bounds the tables of taps.
constexpr int kTileCols = 128;
// A thread takes this many neighbouring pixels of a row together: they have most of their sources in common, and as
// many loads of channels_last maps are in flight. The number divides the columns of a tile.
constexpr int kPixels = 4;
// The kernels access Size elements of the map at once: neighbouring channels of channels_last maps, or neighbouring
// pixels of contiguous ones, which may lie in two rows.
template <int Size, bool ChannelsLast>
constexpr int kAccessPixels = ChannelsLast ? 1 : Size;
// So many of `Pixels` neighbouring pixels lie in one row.
template <int Pixels>
constexpr int kRun = std::min(Pixels, kPixels);
// A block takes this many channels of contiguous maps: a sector of the values, whose channels are innermost.
constexpr int kPlaneChannels = 8;
// With fewer blocks than this a block takes less: a few for each multiprocessor of a large GPU.
constexpr int64_t kEnoughUpsampleBlocks = 512;
// Floats of one access of a thread that has Size channels, to shared memory and to values. Values of a contiguous map
// may be no multiple of 16 bytes a channel.
template <int Size>
constexpr int kSharedWidth = std::min(Size, 4);
template <int Size, bool ChannelsLast>
constexpr int kValueWidth = ChannelsLast ? kSharedWidth<Size> : 1;

// Lanes of a block along channels, Size of them each. channels_last: 128 consecutive bytes with 16 a lane, 64 or 128
// with single elements, and at least a sector of 32, or 16 of single elements.
template <int Size, bool ChannelsLast>
constexpr int kMostLanes = !ChannelsLast ? kPlaneChannels / Size
                           : Size > 1    ? 8
                                         : kWarpSize;
template <int Size, bool ChannelsLast>
constexpr int kLeastLanes = !ChannelsLast ? kPlaneChannels / Size
                            : Size > 1    ? 2
                                          : 8;

// Loads a thread's floats, in accesses of kSharedWidth that lie `stride` apart.
template <int Size>
__device__ inline Vector<float, Size> load_floats(const float* from, int stride = kSharedWidth<Size>) {
  constexpr int kWidth = kSharedWidth<Size>;
  Vector<float, Size> vector;
#pragma unroll
  for (int i = 0; i < Size; i += kWidth) {
    const auto access = load<kWidth>(from + i / kWidth * stride);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) vector.data[i + j] = access.data[j];
  }
  return vector;
}

template <bool Global, int Size>
__device__ inline void store_floats(float* to, const Vector<float, Size>& vector) {
  constexpr int kWidth = kSharedWidth<Size>;
#pragma unroll
  for (int i = 0; i < Size; i += kWidth) {
    Vector<float, kWidth> access;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) access.data[j] = vector.data[i + j];
    store<Global>(to + i, access);
  }
}

// Weights of a level's sources `low` and low + 1 at one position of an axis.
struct alignas(8) AxisTap {
  int32_t low;   // negative: the position lies outside of the map
  float weight;  // of low + 1, zero where that is no source
};

// How the kernels cut the work: a block takes `lanes` x Size channels of one image, of all levels where they are summed
// and of one where they are not, and `rows` x `cols` pixels at a time.
struct UpsamplePlan {
  int64_t blocks;
  int64_t chunks;        // chunks that a level's channels are cut into
  int64_t slices;        // ChannelSlices: chunks of all levels
  int64_t bands, tiles;  // bands of rows, and tiles of columns, of an image
  int lanes, rows, cols;
  int levels;                  // of a block
  int row_stride, col_stride;  // taps of a level along the rows and the columns of a tile
  int run_taps;                // from the first tap of kPixels columns to that of the next
  int tap_bytes;
};

// The number of floats that a row of a tile takes for each channel: one for every bin along an axis and every column of
// the kernel.
inline int64_t entry_count(const PyramidUpsampleParams& params) {
  const int32_t bins =
      params.sum_levels ? params.axis_bins : *std::max_element(params.bins, params.bins + params.levels);
  return int64_t{bins} * params.kernel_size;
}

// Cuts the channels into blocks of `block_channels`.
inline void cut_channels(const PyramidUpsampleParams& params, int block_channels, UpsamplePlan& plan) {
  plan.levels = params.sum_levels ? params.levels : 1;
  plan.chunks = ceil_div(params.channels, block_channels);
  plan.slices = plan.chunks * (params.levels / plan.levels);
}

// Whether a contiguous map can be accessed by vectors of `pixels`: a tile is made of them, its rows together where they
// are the image's whole rows, and kPixels of each lie in one row.
inline bool has_pixel_vectors(const PyramidUpsampleParams& params, int pixels) {
  const int64_t run = params.width > kTileCols ? params.width : params.height * params.width;
  return params.width % kPixels == 0 && run % pixels == 0;
}

// The rows of a tile are a multiple of this: so many rows are made of vectors where the image is.
constexpr int row_unit(int pixels) { return std::max(1, pixels / kPixels); }

// Cuts an image into tiles of at most plan.rows rows, evenly, rounded up to the unit, and lays out their taps.
inline void cut_image(const PyramidUpsampleParams& params, int pixels, UpsamplePlan& plan) {
  const int64_t even_rows = ceil_div(params.height, ceil_div(params.height, plan.rows));
  plan.rows = static_cast<int>(round_up(even_rows, row_unit(pixels)));
  plan.bands = ceil_div(params.height, plan.rows);
  plan.tiles = ceil_div(params.width, kTileCols);
  plan.cols = static_cast<int>(round_up(ceil_div(params.width, plan.tiles), std::max(kPixels, pixels)));
  plan.row_stride = plan.rows + params.kernel_size - 1;
  plan.col_stride = plan.cols / kPixels * plan.run_taps + params.kernel_size - 1;
  const int64_t taps = int64_t{plan.levels} * (plan.row_stride + plan.col_stride);
  plan.tap_bytes = static_cast<int>(round_up(taps * sizeof(AxisTap), kVectorBytes));
}

// The levels and channels that a block works on.
struct ChannelSlice {
  int begin, end;             // levels
  int axis_begin, axis_bins;  // their bins along an axis, counted as in axis_offset
  int64_t channel;            // first, of the values
  int64_t map_channel;        // first, of the map
  int channels;               // how many

  __device__ ChannelSlice(const PyramidUpsampleParams& params, const UpsamplePlan& plan, int64_t slice,
                          int block_channels)
      : begin(static_cast<int>(slice / plan.chunks)),
        end(begin + plan.levels),
        axis_begin(params.axis_offset[begin]),
        axis_bins(params.sum_levels ? params.axis_bins : params.bins[begin]),
        channel(slice % plan.chunks * block_channels),
        map_channel(params.first_channel + begin * params.channels + channel),
        channels(static_cast<int>(min(int64_t{block_channels}, params.channels - channel))) {}
};

// The index in the map of a pixel at the block's first channel.
template <bool ChannelsLast>
__device__ inline int64_t first_element(const PyramidUpsampleParams& params, const ChannelSlice& slice, int64_t image,
                                        int row, int col) {
  if constexpr (ChannelsLast) {
    return ((image * params.height + row) * params.width + col) * params.map_channels + slice.map_channel;
  } else {
    return ((image * params.map_channels + slice.map_channel) * params.height + row) * params.width + col;
  }
}

// Taps [levels, stride] of positions from `first` on, the kernel's reach before it included. Every run_taps begin
// kPixels positions behind those before: more repeat what the kernel reaches behind kPixels.
__device__ inline void fill_taps(const PyramidUpsampleParams& params, const ChannelSlice& slice, int first, int size,
                                 int run_taps, int stride, AxisTap* taps) {
  const int begin = first - params.kernel_size / 2;
  for (int task = threadIdx.x; task < (slice.end - slice.begin) * stride; task += kUpsampleThreads) {
    const int level = slice.begin + task / stride;
    const int position = begin + task % stride / run_taps * kPixels + task % stride % run_taps;
    AxisTap axis_tap{-1, 0.f};
    if (0 <= position && position < size) {
      const Tap<float> tap = interpolation_tap<float>(position, size, params.bins[level], params.align_corners);
      axis_tap = {tap.low, tap.high > tap.low ? tap.weight : 0.f};
    }
    taps[task] = axis_tap;
  }
}

// A bin's column and a kernel's column of one level. A row of a tile has one float for each entry and channel.
struct Entry {
  int level;  // counted from the block's first
  int bins;
  int64_t offset;  // in an image's values, of bin row 0 and kernel row 0
  int64_t stride;  // between bin rows
};

__device__ inline Entry entry_at(const PyramidUpsampleParams& params, const ChannelSlice& slice, int entry) {
  const int k = params.kernel_size;
  const int axis_bin = slice.axis_begin + entry / k;
  int level = slice.begin;
  while (level + 1 < slice.end && axis_bin >= params.axis_offset[level + 1]) ++level;
  const int v = axis_bin - params.axis_offset[level];
  return {level - slice.begin, params.bins[level], params.value_index(level, 0, v, 0, entry % k) * params.channels,
          int64_t{params.bins[level]} * k * k * params.channels};
}

}  // namespace pspfast::cuda
