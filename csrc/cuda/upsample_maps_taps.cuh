// upsample_maps, both directions: the axes that are interpolated, and tables of their taps in shared memory.
#pragma once

#include <algorithm>

#include "../upsample_maps.h"
#include "launch.h"
#include "vector.cuh"

namespace pspfast::cuda {

constexpr int kUpsampleThreads = 256;
// Blocks resident on a multiprocessor: so many leave a thread 128 registers. The forward needs 64 of them for the sums
// of kPixels pixels, two sources and the base, 8 channels each.
constexpr int kUpsampleBlocks = 2;
// Of a block at most: as many bytes of shared memory let two blocks reside on every chip since sm_80, whose
// multiprocessors have 164 KB, of which the system keeps 1 KB for each block.
constexpr int64_t kMostUpsampleBytes = 81 * 1024;
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

// What a way to cut the work costs that moves so many bytes: with too few blocks more than any that has enough, and the
// more blocks the less.
inline double cost_of_plan(double bytes, int64_t blocks, int64_t enough) {
  return blocks < enough ? bytes + 1e18 / static_cast<double>(blocks) : bytes;
}

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

// Values of one access: those of a contiguous map may be no multiple of 16 bytes a channel.
template <typename V, int Size, bool ChannelsLast>
constexpr int kValueWidth = ChannelsLast ? std::min(Size, kVectorSize<V>) : 1;

// Floats of one access to shared memory of a thread that has Size channels.
template <int Size>
constexpr int kSharedWidth = std::min(Size, 4);

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

template <int Size>
__device__ inline void store_floats(float* to, const Vector<float, Size>& vector, int stride = kSharedWidth<Size>) {
  constexpr int kWidth = kSharedWidth<Size>;
#pragma unroll
  for (int i = 0; i < Size; i += kWidth) {
    Vector<float, kWidth> access;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) access.data[j] = vector.data[i + j];
    store<false>(to + i / kWidth * stride, access);
  }
}

// An axis of the map, interpolated from the sources of a level, as taps of the convolution read it.
struct InterpolatedAxis {
  int size, sources;
  int reach;  // of the convolution: positions before and behind the one that it computes
  bool align_corners, nearest;

  PSPFAST_HOST_DEVICE Tap<float> tap(int position) const {
    if (nearest) {
      const int source = nearest_source(position, size, sources);
      return {source, source, 0.f};
    }
    const Tap<float> tap = interpolation_tap<float>(position, size, sources, align_corners);
    return {tap.low, tap.high, tap.high > tap.low ? tap.weight : 0.f};
  }

  // The first source that is read to compute position `begin` and those behind it.
  PSPFAST_HOST_DEVICE int first_source(int begin) const { return tap(begin > reach ? begin - reach : 0).low; }
  // The one behind the last that is read to compute those before position `end`.
  PSPFAST_HOST_DEVICE int end_source(int end) const {
    return tap(end + reach < size ? end + reach - 1 : size - 1).high + 1;
  }
  // At most so many sources are read to compute `positions` neighbours.
  PSPFAST_HOST_DEVICE int most_sources(int positions) const {
    // The first and the last of what is read lie this far apart; the sources around them are two more.
    const int64_t distance =
        ceil_div(int64_t{positions + 2 * reach - 1} * sources, align_corners && size > 1 ? size - 1 : size);
    return distance + 2 < sources ? static_cast<int>(distance + 2) : sources;
  }

  // The first position whose computation reads `source` or one behind it, and the one behind the last that reads those
  // before `end`.
  PSPFAST_HOST_DEVICE int first_reader(int source) const {
    const int position = nearest ? first_nearest_position(source, size, sources)
                                 : first_position(source - 1, size, sources, align_corners);
    return position > reach ? position - reach : 0;
  }
  PSPFAST_HOST_DEVICE int end_reader(int end) const {
    const int position =
        nearest ? first_nearest_position(end, size, sources) : first_position(end, size, sources, align_corners);
    return position + reach < size ? position + reach : size;
  }
  // At most so many positions read one of `count` neighbouring sources.
  PSPFAST_HOST_DEVICE int64_t most_readers(int count) const {
    const int64_t distance = ceil_div(int64_t{count + 1} * size, sources > 1 ? sources - 1 : 1);
    return distance + 1 + 2 * reach < size ? distance + 1 + 2 * reach : size;
  }
};

PSPFAST_HOST_DEVICE inline InterpolatedAxis row_axis(const MapUpsampleParams& params, int level) {
  return {static_cast<int>(params.height), params.rows[level], params.kernel_size / 2, params.align_corners,
          params.nearest};
}
PSPFAST_HOST_DEVICE inline InterpolatedAxis col_axis(const MapUpsampleParams& params, int level) {
  return {static_cast<int>(params.width), params.cols[level], params.kernel_size / 2, params.align_corners,
          params.nearest};
}

// Weights of a level's sources `low` and low + 1 at one position of an axis.
struct alignas(8) AxisTap {
  int32_t low;   // counted from a tile's first; negative: the position lies outside of the map
  float weight;  // of low + 1, zero where that is no source
};

// Fills taps of positions from begin - reach on, in runs of `run` positions, each kPixels behind the one before: what
// a run has more than kPixels repeats.
__device__ inline void fill_taps(const InterpolatedAxis& axis, int begin, int first_source, int run, int count,
                                 AxisTap* taps) {
  for (int i = threadIdx.x; i < count; i += kUpsampleThreads) {
    const int position = begin - axis.reach + i / run * kPixels + i % run;
    AxisTap axis_tap{-1, 0.f};
    if (0 <= position && position < axis.size) {
      const Tap<float> tap = axis.tap(position);
      axis_tap = {tap.low - first_source, tap.weight};
    }
    taps[i] = axis_tap;
  }
}

// The index in the map of a pixel at a channel of the map.
template <bool ChannelsLast>
__device__ inline int64_t map_index(const MapUpsampleParams& params, int64_t image, int64_t channel, int row, int col) {
  if constexpr (ChannelsLast) {
    return ((image * params.height + row) * params.width + col) * params.map_channels + channel;
  } else {
    return ((image * params.map_channels + channel) * params.height + row) * params.width + col;
  }
}

// The index in a level's values of an image of source (row, col) and tap (ky, kx), at channel 0.
__device__ inline int64_t value_index(const MapUpsampleParams& params, int level, int row, int col, int ky, int kx) {
  const int k = params.kernel_size;
  return (((int64_t{row} * params.cols[level] + col) * k + ky) * k + kx) * params.channels;
}

// Whether a contiguous map can be accessed by vectors of `pixels`: rows are made of them, or images are, a tile has
// whole rows, and kPixels of each lie in one row. Such tiles are for few sources.
inline bool has_pixel_vectors(const MapUpsampleParams& params, int pixels) {
  if (params.width % pixels == 0) return true;
  return params.width % kPixels == 0 && params.width <= kTileCols && params.height * params.width % pixels == 0;
}

// The rows of a tile are a multiple of this: so many rows are made of vectors where the image is.
constexpr int row_unit(int pixels) { return std::max(1, pixels / kPixels); }

}  // namespace pspfast::cuda
