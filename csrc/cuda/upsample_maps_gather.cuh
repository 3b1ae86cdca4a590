// upsample_maps, backward: what a block gathers, from pixels to sums in shared memory.
#pragma once

#include "upsample_maps_backward_plan.cuh"
#include "upsample_maps_mix.cuh"

namespace pspfast::cuda {

// Two neighbouring sums, kept while the positions that follow lie between them. Sources from -1 to `count` - 1 are
// known, and those from 0 on are summed.
template <int Size>
struct Sinks {
  int low = -2;
  Vector<float, Size> sum_low{}, sum_high{};

  __device__ void add(const AxisTap& tap, const Vector<float, Size>& grad, float* sums, int stride, int count) {
    if (tap.low < -1 || tap.low >= count) return;
    if (tap.low != low) {
      flush(sums, stride, count);
      low = tap.low;
      if (low >= 0) sum_low = load_floats<Size>(sums + low * stride);
      if (low + 1 < count) sum_high = load_floats<Size>(sums + (low + 1) * stride);
    }
#pragma unroll
    for (int i = 0; i < Size; ++i) sum_low.data[i] += (1.f - tap.weight) * grad.data[i];
    // Infinity times zero would be NaN.
    if (tap.weight == 0.f) return;
#pragma unroll
    for (int i = 0; i < Size; ++i) sum_high.data[i] += tap.weight * grad.data[i];
  }

  __device__ void flush(float* sums, int stride, int count) const {
    if (low >= 0) store_floats(sums + low * stride, sum_low);
    if (low >= -1 && low + 1 < count) store_floats(sums + (low + 1) * stride, sum_high);
  }
};

// A block's part of the map and of the sources.
struct GatherBlock {
  const BackwardGroup* group;
  int64_t chunk, segment, image;
  int band, tile;                  // of sources
  int row, end_row, col, end_col;  // of the map

  __device__ GatherBlock(const MapUpsampleParams& params, const BackwardPlan& plan, int64_t block, int access_pixels) {
    // All groups of a chunk follow each other: L2 has the pixels that the first of them read.
    image = block / plan.chunk_blocks / plan.chunks;
    chunk = block / plan.chunk_blocks % plan.chunks;
    block %= plan.chunk_blocks;
    int of = 0;
    while (of + 1 < plan.count && block >= plan.groups[of + 1].first_block) ++of;
    group = &plan.groups[of];
    block -= group->first_block;
    segment = block % group->segments;
    block /= group->segments;
    tile = static_cast<int>(block % group->tiles);
    band = static_cast<int>(block / group->tiles);
    const int height = static_cast<int>(params.height), width = static_cast<int>(params.width);
    row = static_cast<int>(segment * group->segment_rows);
    end_row = min(row + group->segment_rows, height);
    col = 0;
    end_col = width;
    if (group->bands * group->tiles == 1) return;
    const InterpolatedAxis rows = row_axis(params, group->begin), cols = col_axis(params, group->begin);
    row = rows.first_reader(band * group->source_rows);
    end_row = rows.end_reader(min((band + 1) * group->source_rows, rows.sources));
    col = cols.first_reader(tile * group->source_cols) / access_pixels * access_pixels;
    end_col = cols.end_reader(min((tile + 1) * group->source_cols, cols.sources));
    end_col = min(static_cast<int>(round_up(end_col, access_pixels)), width);
    // Of more sources than positions, some are read by none.
    if (col >= end_col) end_row = row;
  }
};

// How many source columns of a level a block gathers for.
__device__ inline int gathered_cols(const MapUpsampleParams& params, const GatherBlock& block, int level) {
  const int cols = params.cols[level];
  return block.group->tiles > 1 ? min(block.group->source_cols, cols - block.tile * block.group->source_cols) : cols;
}

// The sources of a level that a block gathers for.
struct GatheredLevel {
  int row, rows, col, cols;

  __device__ GatheredLevel(const MapUpsampleParams& params, const GatherBlock& block, int level) {
    const BackwardGroup& group = *block.group;
    if (group.segments > 1) {
      const InterpolatedAxis axis = row_axis(params, level);
      row = axis.first_source(block.row);
      rows = axis.end_source(block.end_row) - row;
    } else {
      row = group.bands > 1 ? block.band * group.source_rows : 0;
      rows = min(group.source_rows, params.rows[level] - row);
    }
    col = group.tiles > 1 ? block.tile * group.source_cols : 0;
    cols = gathered_cols(params, block, level);
  }
};

// A block copies `rows` x `cols` pixels of an image at a time.
struct GradTile {
  int row, col, rows, cols;
};

// Copies planes of a contiguous map to the tile; `pixels` are its first pixel at the block's first channel. A thread
// takes Pixels neighbours in memory, of Size channels.
template <typename T, int Size, int Pixels>
__device__ inline void load_planes(const MapUpsampleParams& params, const BackwardPlan& plan, int channels,
                                   const GradTile& at, const T* __restrict__ pixels, T* tile) {
  const int64_t plane = params.height * params.width;
  const int vectors = at.rows * at.cols / Pixels;
  for (int task = threadIdx.x; task < vectors * plan.lanes; task += kUpsampleThreads) {
    const int lane = task / vectors;
    const int in_tile = task % vectors * Pixels;
    const T* from = pixels + in_tile / at.cols * params.width + in_tile % at.cols + lane * Size * plane;
    Vector<T, Pixels> planes[Size] = {};
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      if (lane * Size + i < channels) planes[i] = load<Pixels>(from + i * plane);
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

// The same for a channels_last map.
template <typename T, int Size>
__device__ inline void load_channels(const MapUpsampleParams& params, const BackwardPlan& plan, int channels,
                                     const GradTile& at, const T* __restrict__ pixels, T* tile) {
  for (int task = threadIdx.x; task < at.rows * at.cols * plan.lanes; task += kUpsampleThreads) {
    const int lane = task % plan.lanes;
    const int row = task / plan.lanes / at.cols;
    const int col = task / plan.lanes % at.cols;
    if (lane * Size >= channels) continue;
    const auto vector = load<Size>(pixels + (row * params.width + col) * params.map_channels + lane * Size);
    store<false>(tile + (row * tile_stride(plan) + tile_position(col * plan.lanes + lane)) * Size, vector);
  }
}

// Sums columns into sums [rows, entries, channels of the block], which hold those of earlier tiles of the rows.
template <typename T, int Size>
__device__ inline void sum_columns(const MapUpsampleParams& params, const BackwardPlan& plan, const GatherBlock& block,
                                   int channels, const GradTile& at, const AxisTap* col_taps, const T* tile,
                                   float* sums) {
  const int k = params.kernel_size;
  const int block_channels = plan.lanes * Size;
  const int levels = block.group->end - block.group->begin;
  for (int task = threadIdx.x; task < at.rows * levels * k * plan.lanes; task += kUpsampleThreads) {
    const int lane = task % plan.lanes;
    if (lane * Size >= channels) continue;
    const int kx = task / plan.lanes % k;
    const int in_block = task / (plan.lanes * k) % levels;
    const int row = task / (plan.lanes * k * levels);
    int first_col = 0;
    for (int i = 0; i < in_block; ++i) first_col += gathered_cols(params, block, block.group->begin + i);
    const int cols = gathered_cols(params, block, block.group->begin + in_block);
    float* const to = sums + (row * block.group->entries + first_col * k + kx) * block_channels + lane * Size;
    const int stride = k * block_channels;
    if (at.col == block.col) {
      for (int col = 0; col < cols; ++col) store_floats(to + col * stride, Vector<float, Size>{});
    }
    const AxisTap* taps = col_taps + in_block * plan.col_stride + kx;
    const T* const pixels = tile + row * tile_stride(plan) * Size;
    Sinks<Size> sinks;
    for (int col = 0; col < at.cols; ++col) {
      const auto grad = load_values<Size>(pixels + tile_position(col * plan.lanes + lane) * Size);
      sinks.add(taps[col], grad, to, stride, cols);
    }
    sinks.flush(to, stride, cols);
  }
}

// Adds the rows of a batch to the block's sums gathered [rows of sources of the levels, k, their entries, channels],
// where they belong to the same thread in every batch.
template <int Size>
__device__ inline void sum_rows(const MapUpsampleParams& params, const BackwardPlan& plan, const GatherBlock& block,
                                int channels, const GradTile& at, const AxisTap* row_taps, const float* sums,
                                float* gathered) {
  constexpr int kWidth = kSharedWidth<Size>;
  const int k = params.kernel_size;
  const int block_channels = plan.lanes * Size;
  const int columns = block_channels / kWidth;
  int first_entry = 0;
  for (int level = block.group->begin; level < block.group->end; ++level) {
    const GatheredLevel sources(params, block, level);
    const int entries = sources.cols * k;
    for (int task = threadIdx.x; task < entries * k * columns; task += kUpsampleThreads) {
      const int within = task % columns * kWidth;
      if (within >= channels) continue;
      const int entry = task / columns % entries;
      const int ky = task / columns / entries;
      const float* const from = sums + (first_entry + entry) * block_channels + within;
      float* const to = gathered + (ky * entries + entry) * block_channels + within;
      Sinks<kWidth> sinks;
      for (int row = 0; row < at.rows; ++row) {
        const auto grad = load<kWidth>(from + row * block.group->entries * block_channels);
        sinks.add(row_taps[row + ky], grad, to, k * entries * block_channels, sources.rows);
      }
      sinks.flush(to, k * entries * block_channels, sources.rows);
    }
    first_entry += entries;
    gathered += sources.rows * k * entries * block_channels;
    row_taps += plan.row_stride;
  }
}

}  // namespace pspfast::cuda
