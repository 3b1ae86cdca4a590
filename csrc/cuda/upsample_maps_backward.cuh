// upsample_maps, backward: a block goes through rows of an image, a batch of them at a time. It copies their pixels to
// shared memory, sums the columns of each row into those of all sources, and then the rows of these into the rows of
// all sources. Every sum belongs to one thread, and a block reads a pixel once.
#pragma once

#include "upsample_maps_gather.cuh"

namespace pspfast::cuda {

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
