// upsample_maps, backward: a block goes through rows of an image, a batch of them at a time. It copies their pixels to
// shared memory, sums the columns of each row into those of all sources, and then the rows of these into the rows of
// all sources. Every sum belongs to one thread, and a block reads a pixel once.
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
    int of = 0;
    while (of + 1 < plan.count && block >= plan.groups[of + 1].first_block) ++of;
    group = &plan.groups[of];
    block -= group->first_block;
    chunk = block % plan.chunks;
    block /= plan.chunks;
    segment = block % group->segments;
    block /= group->segments;
    tile = static_cast<int>(block % group->tiles);
    block /= group->tiles;
    band = static_cast<int>(block % group->bands);
    image = block / group->bands;
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

// Writes the block's sums, Width channels at a time: to the gradients, or to the sums of its segment.
template <typename V, int Width>
__device__ inline void write_sums(const MapUpsampleParams& params, const BackwardPlan& plan, const GatherBlock& block,
                                  int block_channels, const ChannelSlice& slice, const float* gathered,
                                  const LevelValues<void>& grad_values, float* sums) {
  const int k = params.kernel_size;
  const int columns = block_channels / Width;
  const BackwardGroup& group = *block.group;
  float* segment_values = sums + group.first_sum + slice.channel +
                          (block.segment * params.batch + block.image) * segment_sums(params, group) * params.channels;
  for (int level = group.begin; level < group.end; ++level) {
    const GatheredLevel sources(params, block, level);
    const int entries = sources.cols * k;
    V* const values =
        static_cast<V*>(grad_values.data[level]) + block.image * grad_values.image_stride[level] + slice.channel;
    const int64_t cols = params.cols[level];
    for (int task = threadIdx.x; task < sources.rows * k * entries * columns; task += kUpsampleThreads) {
      const int within = task % columns * Width;
      if (within >= slice.channels) continue;
      const int entry = task / columns % entries;
      const int ky = task / columns / entries % k;
      const int row = task / columns / entries / k;
      const float* const from = gathered + task / columns * block_channels + within;
      const int col = entry / k, kx = entry % k;
      if (group.segments > 1) {
        float* const to = segment_values + (((row * cols + col) * k + ky) * k + kx) * params.channels + within;
#pragma unroll
        for (int i = 0; i < Width; i += kSharedWidth<Width>) {
          store<true>(to + i, load<kSharedWidth<Width>>(from + i));
        }
      } else {
        Vector<V, Width> grad;
        const auto sum = load_floats<Width>(from);
#pragma unroll
        for (int i = 0; i < Width; ++i) grad.data[i] = from_float<V>(sum.data[i]);
        store<true>(values + value_index(params, level, sources.row + row, sources.col + col, ky, kx) + within, grad);
      }
    }
    gathered += sources.rows * k * entries * block_channels;
    segment_values += int64_t{segment_sources(params, group, level)} * cols * k * k * params.channels;
  }
}

// The gradient of the values: grad_map [N, map_channels, H, W], in memory [N, H, W, map_channels] if ChannelsLast.
template <typename T, typename V, int Size, bool ChannelsLast>
__global__ void __launch_bounds__(kUpsampleThreads, kUpsampleBlocks)
    upsample_bwd_kernel(const __grid_constant__ MapUpsampleParams params, const __grid_constant__ BackwardPlan plan,
                        const T* __restrict__ grad_map, const __grid_constant__ LevelValues<void> grad_values,
                        float* __restrict__ segment_values) {
  constexpr int kChannels = kBwdChannels<T, Size, ChannelsLast>;
  constexpr int kVectorPixels = kAccessPixels<Size, ChannelsLast>;
  PSPFAST_SHARED(shared);
  AxisTap* const row_taps = reinterpret_cast<AxisTap*>(shared);        // [levels, row_stride]
  AxisTap* const col_taps = row_taps + plan.levels * plan.row_stride;  // [levels, col_stride]
  const int block_channels = plan.lanes * kChannels;
  for (int64_t index = blockIdx.x; index < plan.blocks; index += gridDim.x) {
    const GatherBlock block(params, plan, index, kVectorPixels);
    const BackwardGroup& group = *block.group;
    const ChannelSlice slice(params, group.begin, group.end, block.chunk, block_channels);
    float* const gathered = reinterpret_cast<float*>(shared + plan.table_bytes);
    float* const sums = gathered + group.gathered * block_channels;
    T* const tile = reinterpret_cast<T*>(sums + plan.rows * group.entries * block_channels);
    for (int i = threadIdx.x; i < group.gathered * block_channels; i += kUpsampleThreads) gathered[i] = 0.f;
    __syncthreads();
    GradTile at{};
    for (at.row = block.row; at.row < block.end_row; at.row += plan.rows) {
      at.rows = min(plan.rows, block.end_row - at.row);
      for (int level = group.begin; level < group.end; ++level) {
        fill_taps(row_axis(params, level), at.row, GatheredLevel(params, block, level).row, plan.row_stride,
                  plan.row_stride, row_taps + (level - group.begin) * plan.row_stride);
      }
      for (at.col = block.col; at.col < block.end_col; at.col += plan.cols) {
        at.cols = min(plan.cols, block.end_col - at.col);
        for (int level = group.begin; level < group.end; ++level) {
          fill_taps(col_axis(params, level), at.col, GatheredLevel(params, block, level).col, plan.col_stride,
                    plan.col_stride, col_taps + (level - group.begin) * plan.col_stride);
        }
        const T* pixels = grad_map + map_index<ChannelsLast>(params, block.image, slice.map_channel, at.row, at.col);
        if constexpr (ChannelsLast) {
          load_channels<T, Size>(params, plan, slice.channels, at, pixels, tile);
        } else {
          static_assert(kTileRun % (kPixels * kMostLanes<kChannels, ChannelsLast>) == 0);
          load_planes<T, kChannels, Size>(params, plan, slice.channels, at, pixels, tile);
        }
        __syncthreads();
        sum_columns<T, kChannels>(params, plan, block, slice.channels, at, col_taps, tile, sums);
        __syncthreads();
      }
      sum_rows<kChannels>(params, plan, block, slice.channels, at, row_taps, sums, gathered);
      __syncthreads();
    }
    write_sums<V, kValueWidth<V, kChannels, ChannelsLast>>(params, plan, block, block_channels, slice, gathered,
                                                           grad_values, segment_values);
    __syncthreads();
  }
}

// So few that there are blocks for all multiprocessors where sums are few.
constexpr int kSegmentThreads = 64;

// Adds what segments gathered. A thread takes one sum of one image.
template <typename V>
__global__ void __launch_bounds__(kSegmentThreads)
    add_segments_kernel(const __grid_constant__ MapUpsampleParams params, const __grid_constant__ BackwardPlan plan,
                        const float* __restrict__ segment_values,
                        const __grid_constant__ LevelValues<void> grad_values) {
  const int taps = params.kernel_size * params.kernel_size;
  for (int of = 0; of < plan.count; ++of) {
    const BackwardGroup& group = plan.groups[of];
    if (group.segments == 1) continue;
    const int64_t segment_stride = segment_sums(params, group) * params.channels;
    const float* level_values = segment_values + group.first_sum;
    for (int level = group.begin; level < group.end; ++level) {
      const InterpolatedAxis rows = row_axis(params, level);
      const int64_t row_size = params.cols[level] * taps * params.channels;
      const int64_t level_size = rows.sources * row_size;
      const int64_t step = int64_t{gridDim.x} * kSegmentThreads;
      for (int64_t i = int64_t{blockIdx.x} * kSegmentThreads + threadIdx.x; i < params.batch * level_size; i += step) {
        const int64_t image = i / level_size;
        const int row = static_cast<int>(i % level_size / row_size);
        float sum = 0.f;
        for (int segment = rows.first_reader(row) / group.segment_rows; segment < group.segments; ++segment) {
          const int first_row = segment * group.segment_rows;
          const int end_row = min(first_row + group.segment_rows, rows.size);
          const int first_source = rows.first_source(first_row);
          if (first_source > row) break;
          if (row >= rows.end_source(end_row)) continue;
          sum += level_values[(segment * params.batch + image) * segment_stride + (row - first_source) * row_size +
                              i % row_size];
        }
        static_cast<V*>(grad_values.data[level])[image * grad_values.image_stride[level] + i % level_size] =
            from_float<V>(sum);
      }
      level_values += segment_sources(params, group, level) * row_size;
    }
  }
}

}  // namespace pspfast::cuda
