// What both directions of pyramid_upsample share: how a block's levels and channels follow from its number, and tables
// of interpolation taps in shared memory.
#pragma once

#include <algorithm>

#include "../pyramid_upsample.h"
#include "launch.h"
#include "vector.h"

namespace pspfast::cuda {

constexpr int kUpsampleThreads = 256;
// Resident on a multiprocessor: leaves a thread 80 registers.
constexpr int kUpsampleBlocks = 3;
// Columns of a tile at most: bounds the tables of taps.
constexpr int kTileCols = 128;
// Channels of a block on contiguous maps: a sector of the values, whose channels are innermost.
constexpr int kPlaneChannels = 8;
// Blocks below which a block takes less: a few for each multiprocessor of a large GPU.
constexpr int64_t kEnoughUpsampleBlocks = 512;
// Floats of one access, of a thread that has Size channels: in shared memory, and of values, where no 16 bytes are
// promised to the channels of a contiguous map.
template <int Size>
constexpr int kSharedWidth = std::min(Size, 4);
template <int Size, bool ChannelsLast>
constexpr int kValueWidth = ChannelsLast ? kSharedWidth<Size> : 1;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Weights of a level's sources `low` and low + 1 at one position of an axis.
struct alignas(8) AxisTap {
  int32_t low;   // negative: the position lies outside of the map
  float weight;  // of low + 1, zero where that is no source
};

// How the kernels cut the work: a block takes `lanes` x Size channels of one image, of all levels where they are summed
// and of one where they are not, and `rows` x `cols` pixels at a time.
struct UpsamplePlan {
  int64_t blocks;
  int64_t chunks;        // of channels, a level
  int64_t copy_chunks;   // forward: of the channels that are copied
  int64_t bands, tiles;  // of rows and of columns, an image
  int lanes, rows, cols;
  int levels;                  // of a block
  int row_stride, col_stride;  // taps of a level along the rows and the columns of a tile
  int tap_bytes;
};

inline PSPFAST_HOST_DEVICE int64_t group_count(const PyramidUpsampleParams& params) {
  return params.sum_levels ? 1 : params.levels;
}

// Floats that a row of a tile takes for each channel: one for every bin along an axis and every column of the kernel.
inline int64_t entry_count(const PyramidUpsampleParams& params) {
  const int32_t bins =
      params.sum_levels ? params.axis_bins : *std::max_element(params.bins, params.bins + params.levels);
  return int64_t{bins} * params.kernel_size;
}

// Evens out the tiles, of at most `rows` rows, and lays out their taps; `pixels` of a row are taken together.
inline void complete_plan(const PyramidUpsampleParams& params, int pixels, UpsamplePlan& plan) {
  plan.bands = ceil_div(params.height, plan.rows);
  plan.rows = static_cast<int>(ceil_div(params.height, plan.bands));
  plan.tiles = ceil_div(params.width, kTileCols);
  plan.cols = static_cast<int>(ceil_div(params.width, plan.tiles));
  plan.levels = params.sum_levels ? params.levels : 1;
  plan.row_stride = plan.rows + params.kernel_size - 1;
  plan.col_stride = static_cast<int>(round_up(plan.cols, pixels)) + params.kernel_size - 1;
  const int64_t taps = int64_t{plan.levels} * (plan.row_stride + plan.col_stride);
  plan.tap_bytes = static_cast<int>(round_up(taps * sizeof(AxisTap), kVectorBytes));
}

// The levels of a block.
struct LevelRange {
  int begin, end;
  int axis_begin, axis_bins;  // bins along an axis, counted as in axis_offset

  __device__ LevelRange(const PyramidUpsampleParams& params, int64_t group)
      : begin(static_cast<int>(group)),
        end(params.sum_levels ? params.levels : begin + 1),
        axis_begin(params.axis_offset[begin]),
        axis_bins(params.sum_levels ? params.axis_bins : params.bins[begin]) {}
};

// Taps [levels, stride] of positions from `first` on, the kernel's reach before it included.
__device__ inline void fill_taps(const PyramidUpsampleParams& params, const LevelRange& range, int first, int size,
                                 int stride, AxisTap* taps) {
  const int begin = first - params.kernel_size / 2;
  for (int task = threadIdx.x; task < (range.end - range.begin) * stride; task += kUpsampleThreads) {
    const int level = range.begin + task / stride;
    const int position = begin + task % stride;
    AxisTap axis_tap{-1, 0.f};
    if (0 <= position && position < size) {
      const Tap<float> tap = interpolation_tap<float>(position, size, params.bins[level], params.align_corners);
      axis_tap = {tap.low, tap.high > tap.low ? tap.weight : 0.f};
    }
    taps[task] = axis_tap;
  }
}

// A bin's column and a kernel's column of one level: what a row of a tile has a float for, a channel.
struct Entry {
  int level;  // counted from the block's first
  int bins;
  int64_t offset;  // in an image's values, of bin row 0 and kernel row 0
  int64_t stride;  // between bin rows
};

__device__ inline Entry entry_at(const PyramidUpsampleParams& params, const LevelRange& range, int entry) {
  const int k = params.kernel_size;
  const int axis_bin = range.axis_begin + entry / k;
  int level = range.begin;
  while (level + 1 < range.end && axis_bin >= params.axis_offset[level + 1]) ++level;
  const int v = axis_bin - params.axis_offset[level];
  return {level - range.begin, params.bins[level], params.value_index(level, 0, v, 0, entry % k) * params.channels,
          int64_t{params.bins[level]} * k * k * params.channels};
}

}  // namespace pspfast::cuda
