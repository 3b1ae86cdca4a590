// upsample_concat_conv2d on the CPU, what both directions share: which maps are convolved by Winograd's algorithm, how
// output channels are cut for caches, and where a map's share of the weight lies.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../upsample_concat_conv2d.h"
#include "../winograd.h"
#include "axis_taps.h"

namespace pspfast::cpu {

// A vector of vector.inl, and the type of sums, whatever the instruction set.
constexpr int64_t kLanes = 16;
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A weight's element (o, c, t), t = k ky + kx, is data[o * out_stride + c * in_stride + t * tap_stride].
template <class T>
struct StridedWeight {
  T* data;
  int64_t out_stride, in_stride, tap_stride, taps;
};

template <class A>
struct Term {
  const A* run;
  A weight;
};

// A row of a map's products by the weight's columns of taps, summed over its rows: a run of the map's columns for each
// tap and block of output channels.
template <class A>
struct MixedRow {
  const A* data;
  int64_t tap_stride, block_stride;
  const AxisTaps<A>* cols;
};

// Columns of a product, taps of output channels: the weight of 512 input channels for them, 1.2 MB, stays near a core's
// own cache, and packing a map's positions for them takes 1 or 2 % of the time of multiplying them.
constexpr int64_t kColumns = 576;

inline int64_t taps_of(const UpsampleConcatConv2dParams& p) { return p.kernel_size * p.kernel_size; }

// Output channels in even chunks of at most kColumns / parts columns.
struct Chunks {
  int64_t size, count;

  Chunks(const UpsampleConcatConv2dParams& p, int64_t parts) {
    const int64_t most = std::max(kLanes, kColumns / parts / taps_of(p) / kLanes * kLanes);
    size = round_up(ceil_div(p.out_channels, ceil_div(p.out_channels, most)), kLanes);
    count = ceil_div(p.out_channels, size);
  }
};

// A weight's part for a map, from output channel `first` on.
template <class T>
StridedWeight<T> part_of(const UpsampleConcatConv2dParams& p, T* weight, const SourceMap& map, int64_t first) {
  const int64_t taps = taps_of(p), in_stride = p.weight_channels_last ? 1 : taps;
  T* data = weight + first * p.channels * taps + map.first_channel * in_stride;
  return {data, p.channels * taps, in_stride, p.weight_channels_last ? p.channels : 1, taps};
}

inline WinogradParams winograd_params(const UpsampleConcatConv2dParams& p, const SourceMap& map) {
  return {p.batch, p.height, p.width, map.channels, p.out_channels, /*dilation=*/1, p.dtype};
}

// A full-size map is best convolved by Winograd's algorithm, which takes 2.25 multiplications a pixel, channel and
// filter. A map upsampled by s takes 9 / s^2 at its own resolution, as many for s = 2 as when it is upsampled and
// convolved; the upsampled map would have to be in memory for that.
inline bool by_winograd(const UpsampleConcatConv2dParams& p, const SourceMap& map) {
  return p.kernel_size == 3 && map.rows == p.height && map.cols == p.width &&
         winograd_is_faster(winograd_params(p, map));
}

template <class T>
WinogradWeight winograd_weight(const UpsampleConcatConv2dParams& p, const T* weight, const SourceMap& map,
                               bool transposed) {
  const auto part = part_of(p, weight, map, 0);
  return {part.data, part.out_stride, part.in_stride, part.tap_stride, transposed, nullptr};
}

// A map that is mixed at its own resolution.
template <class T>
struct MixedMap {
  using A = Acc<T>;

  SourceMap map;
  AxisTaps<A> rows, cols;
  int64_t depth;  // channels, rounded up to whole vectors

  MixedMap(const UpsampleConcatConv2dParams& p, const SourceMap& map)
      : map(map),
        rows(p.height, map.rows, p.kernel_size, p.align_corners, p.nearest),
        cols(p.width, map.cols, p.kernel_size, p.align_corners, p.nearest),
        depth(round_up(map.channels, kLanes)) {}

  // Runs of columns lie an odd number of cache lines apart, in different sets of the cache.
  int64_t run_stride() const { return (map.cols | 1) * kLanes; }
  const T* row_of(int64_t n, int64_t row) const {
    return static_cast<const T*>(map.data) + (n * map.rows + row) * map.cols * map.channels;
  }
};

}  // namespace pspfast::cpu
