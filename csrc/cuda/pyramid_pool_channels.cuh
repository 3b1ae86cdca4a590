// pyramid_pool of channels_last maps: a block takes a few neighbouring channels of one image. A warp takes one cell of
// the pyramid at a time: lanes along channels, 16 bytes each, and along pixels.
#pragma once

#include "../pyramid_pool.h"
#include "cells.cuh"
#include "launch.h"
#include "vector.cuh"

namespace pspfast::cuda {

constexpr int kChannelThreads = 128;
constexpr int kChannelWarps = kChannelThreads / kWarpSize;
// Blocks resident on a multiprocessor: so many leave a thread 64 registers, enough for kBatch loads of 16 bytes.
constexpr int kChannelBlocks = 8;
// Loads of a thread in flight.
constexpr int kBatch = 4;
// Blocks below which a block takes fewer channels: a few for each multiprocessor of a large GPU.
constexpr int64_t kEnoughBlocks = 512;

// How channel_* kernels cut the work: a block takes `lanes` x Size channels of one image, Size of them a lane.
struct ChannelPlan {
  int lanes;
  int64_t chunks;  // chunks of channels of an image
  bool by_cell;    // forward: the sums of all cells fit into shared memory, so that x is read once
};

template <int Size>
int64_t cell_bytes(const PyramidPoolParams& params, int lanes) {
  return int64_t{params.cells.rows.count} * params.cells.cols.count * lanes * Size * sizeof(float);
}

template <int Size>
ChannelPlan make_channel_plan(const PyramidPoolParams& params, int64_t blocks_per_chunk, bool needs_cells) {
  // 128 consecutive bytes with 16 a lane, 64 or 128 with single elements; never less than a sector of 32 or 16.
  int lanes = Size > 1 ? 8 : kWarpSize;
  const int least = Size > 1 ? 2 : 8;
  const auto chunks = [&] { return ceil_div(params.channels, lanes * Size); };
  const auto fits = [&] { return cell_bytes<Size>(params, lanes) <= kMaxSharedBytes; };
  while (lanes > least && params.batch * chunks() * blocks_per_chunk < kEnoughBlocks) lanes /= 2;
  while (needs_cells && lanes > 1 && !fits()) lanes /= 2;
  return {lanes, chunks(), fits()};
}

// A thread's place in a channel_* block.
template <int Size>
struct ChannelLane {
  int warp, lane, slot, slots;  // each slot takes every slots-th pixel of a rectangle
  int64_t image, channel;       // first of the thread's Size channels

  __device__ ChannelLane(const ChannelPlan& plan, int64_t block)
      : warp(threadIdx.x / kWarpSize),
        lane(threadIdx.x % plan.lanes),
        slot(threadIdx.x % kWarpSize / plan.lanes),
        slots(kWarpSize / plan.lanes),
        image(block / plan.chunks),
        channel((block % plan.chunks * plan.lanes + lane) * Size) {}
};

// Visits a rectangle of `cols` columns in row-major order from `start` in steps of `step`, one division in all.
struct Walk {
  int row, col, row_step, col_step, cols;

  __device__ Walk(int start, int step, int cols)
      : row(start / cols), col(start % cols), row_step(step / cols), col_step(step % cols), cols(cols) {}

  __device__ void advance() {
    row += row_step;
    col += col_step;
    if (col >= cols) {
      col -= cols;
      ++row;
    }
  }
};

struct Rectangle {
  int row_begin, row_end, col_begin, col_end;
};

// Sum of `image` [H, W, C] over the rectangle's pixels; every slot gets it.
template <typename T, int Size>
__device__ inline void sum_pixels(const PyramidPoolParams& params, const T* image, const ChannelLane<Size>& at,
                                  const Rectangle& area, float (&sum)[Size]) {
#pragma unroll
  for (int i = 0; i < Size; ++i) sum[i] = 0;
  if (at.channel < params.channels) {
    const int rows = area.row_end - area.row_begin;
    const T* first = image + (area.row_begin * params.width + area.col_begin) * params.channels + at.channel;
    Walk walk(at.slot, at.slots, area.col_end - area.col_begin);
    while (walk.row < rows) {
      Vector<T, Size> batch[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        batch[k] = {};
        if (walk.row < rows) {
          batch[k] = load<Size>(first + (walk.row * params.width + walk.col) * params.channels);
        }
        walk.advance();
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
#pragma unroll
        for (int i = 0; i < Size; ++i) sum[i] += to_float(batch[k].data[i]);
      }
    }
  }
  for (int offset = kWarpSize / at.slots; offset < kWarpSize; offset *= 2) {
#pragma unroll
    for (int i = 0; i < Size; ++i) sum[i] += __shfl_xor_sync(kFullWarp, sum[i], offset);
  }
}

// Pools channels_last maps: x [N, H, W, C] and pooled [N, S, C] in memory.
template <typename T, int Size>
__global__ void __launch_bounds__(kChannelThreads, kChannelBlocks)
    channel_fwd_kernel(const __grid_constant__ PyramidPoolParams params, const __grid_constant__ ChannelPlan plan,
                       const T* __restrict__ x, T* __restrict__ pooled) {
  PSPFAST_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);  // [cells, channels of the block]
  const PyramidCells& cells = params.cells;
  const AxisCells& rows = cells.rows;
  const AxisCells& cols = cells.cols;
  const int block_channels = plan.lanes * Size;
  for (int64_t block = blockIdx.x; block < params.batch * plan.chunks; block += gridDim.x) {
    const ChannelLane<Size> at(plan, block);
    const T* image = x + at.image * params.height * params.width * params.channels;
    T* out = pooled + at.image * cells.bin_count * params.channels;
    float sum[Size];
    if (!plan.by_cell) {
      for (int s = at.warp; s < cells.bin_count; s += kChannelWarps) {
        const Bin bin = bin_at(cells, s);
        sum_pixels(params, image, at,
                   {rows.edge[rows.begin[bin.row]], rows.edge[rows.end[bin.row]], cols.edge[cols.begin[bin.col]],
                    cols.edge[cols.end[bin.col]]},
                   sum);
        if (at.slot > 0 || at.channel >= params.channels) continue;
#pragma unroll
        for (int i = 0; i < Size; ++i) {
          out[s * params.channels + at.channel + i] = from_float<T>(sum[i] / area_of(cells, bin.row, bin.col));
        }
      }
      continue;
    }
    for (int cell = at.warp; cell < rows.count * cols.count; cell += kChannelWarps) {
      const int r = cell / cols.count;
      const int c = cell % cols.count;
      sum_pixels(params, image, at, {rows.edge[r], rows.edge[r + 1], cols.edge[c], cols.edge[c + 1]}, sum);
      if (at.slot > 0) continue;
#pragma unroll
      for (int i = 0; i < Size; ++i) sums[cell * block_channels + at.lane * Size + i] = sum[i];
    }
    __syncthreads();
    const int64_t block_channel = block % plan.chunks * block_channels;
    for (int task = threadIdx.x; task < cells.bin_count * block_channels; task += kChannelThreads) {
      const int s = task / block_channels;
      const int within = task % block_channels;
      if (block_channel + within >= params.channels) continue;
      const Bin bin = bin_at(cells, s);
      float total = 0;
      for (int r = rows.begin[bin.row]; r < rows.end[bin.row]; ++r) {
        for (int c = cols.begin[bin.col]; c < cols.end[bin.col]; ++c) {
          total += sums[(r * cols.count + c) * block_channels + within];
        }
      }
      out[s * params.channels + block_channel + within] = from_float<T>(total / area_of(cells, bin.row, bin.col));
    }
    __syncthreads();
  }
}

// The gradient of channels_last maps: grad_pooled [N, S, C] and grad_x [N, H, W, C] in memory. A block takes one band
// of rows: the gradient is constant in each of its cells.
template <typename T, int Size>
__global__ void __launch_bounds__(kChannelThreads, kChannelBlocks)
    channel_bwd_kernel(const __grid_constant__ PyramidPoolParams params, const __grid_constant__ ChannelPlan plan,
                       const T* __restrict__ grad_pooled, T* __restrict__ grad_x) {
  const PyramidCells& cells = params.cells;
  const AxisCells& rows = cells.rows;
  const AxisCells& cols = cells.cols;
  const int band = blockIdx.y;
  for (int64_t block = blockIdx.x; block < params.batch * plan.chunks; block += gridDim.x) {
    const ChannelLane<Size> at(plan, block);
    if (at.channel >= params.channels) continue;
    const T* grad = grad_pooled + at.image * cells.bin_count * params.channels + at.channel;
    T* image = grad_x + at.image * params.height * params.width * params.channels + at.channel;
    for (int cell = at.warp; cell < cols.count; cell += kChannelWarps) {
      float sum[Size] = {};
      for (int level = 0; level < cells.levels; ++level) {
        const int bins = cells.bins[level];
        const int first = cells.axis_offset[level];
        for (int u = 0; u < bins; ++u) {
          if (!covers(rows, first + u, band)) continue;
          for (int v = 0; v < bins; ++v) {
            if (!covers(cols, first + v, cell)) continue;
            const int s = cells.bin_offset[level] + u * bins + v;
            const Vector<T, Size> value = load<Size>(grad + s * params.channels);
            const float scale = 1.f / area_of(cells, first + u, first + v);
#pragma unroll
            for (int i = 0; i < Size; ++i) sum[i] += to_float(value.data[i]) * scale;
          }
        }
      }
      Vector<T, Size> value;
#pragma unroll
      for (int i = 0; i < Size; ++i) value.data[i] = from_float<T>(sum[i]);
      T* corner = image + (rows.edge[band] * params.width + cols.edge[cell]) * params.channels;
      const int cell_rows = rows.edge[band + 1] - rows.edge[band];
      for (Walk walk(at.slot, at.slots, cols.edge[cell + 1] - cols.edge[cell]); walk.row < cell_rows; walk.advance()) {
        store<true>(corner + (walk.row * params.width + walk.col) * params.channels, value);
      }
    }
  }
}

}  // namespace pspfast::cuda
