// The layout of transformed tensors, and how the CPU kernels of winograd_* go through tiles and channels.
#pragma once

#include <algorithm>

#include "../winograd.h"

namespace pspfast::cpu {

// Channels transformed at a time, and tiles, so that a transformed tensor of them takes 19 MB at most: two of them are
// about the last-level cache of a server's core complex, 32 MB.
constexpr int64_t kChannels = 512, kTiles = 256;

// [36, blocks, rows, 16]: tiles of blocks of 16 channels, or channels of blocks of 16 filters.
struct Transformed {
  float* data;
  int64_t blocks, rows, block_stride, position_stride;
};

// The additional row keeps the positions out of one another's set of the cache.
inline int64_t position_stride(int64_t blocks, int64_t rows) { return (blocks * rows + 1) * kChannelBlock; }
inline int64_t transformed_size(int64_t blocks, int64_t rows) { return kTilePositions * position_stride(blocks, rows); }
inline Transformed transformed(float* data, int64_t blocks, int64_t rows) {
  return {data, blocks, rows, rows * kChannelBlock, position_stride(blocks, rows)};
}

// Blocks of 16 of the channels that are transformed at a time.
inline int64_t chunk_blocks(int64_t channels) { return channel_blocks(std::min(channels, kChannels)); }

// Transforms the filters from `first` on and the input channels from `channel` on, as many as `to` has room for. T is
// the weight's element type.
template <class T>
void transform_weight(const WinogradParams& p, const WinogradWeight& weight, int64_t first, int64_t channel,
                      const Transformed& to);

// Calls f(begin, count) for [0, size) in chunks of at most `most` each, whose sizes differ by one at most.
template <class F>
void for_each_even_chunk(int64_t size, int64_t most, const F& f) {
  const int64_t chunks = ceil_div(size, most);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * size / chunks;
    f(begin, (chunk + 1) * size / chunks - begin);
  }
}

// Calls f(begin, count) for [0, size) in steps.
template <class F>
void for_each_step(int64_t size, int64_t step, const F& f) {
  for (int64_t begin = 0; begin < size; begin += step) f(begin, std::min(step, size - begin));
}

}  // namespace pspfast::cpu
