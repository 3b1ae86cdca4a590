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

// How channel_* kernels cut the work: a block takes `lanes` x Size channels of one image, Size of them a lane, and a
// band of its rows of cells.
struct ChannelPlan {
  int lanes;
  int64_t chunks;  // chunks of channels of an image
  int bands;
};

template <int Size>
int64_t cell_bytes(const PyramidPoolParams& params, int lanes) {
  return int64_t{params.cells.rows.count} * params.cells.cols.count * lanes * Size * sizeof(float);
}

// Lanes along channels: 128 consecutive bytes with 16 a lane, 64 or 128 with single elements; never less than a sector
// of 32 or 16.
template <int Size>
constexpr int kMostChannelLanes = Size > 1 ? 8 : kWarpSize;
template <int Size>
constexpr int kLeastChannelLanes = Size > 1 ? 2 : 8;

// Backward, each band is a row of cells.
template <int Size>
ChannelPlan make_bwd_channel_plan(const PyramidPoolParams& params) {
  ChannelPlan plan{.lanes = kMostChannelLanes<Size>, .bands = params.cells.rows.count};
  for (;; plan.lanes /= 2) {
    plan.chunks = ceil_div(params.channels, plan.lanes * Size);
    const bool enough = params.batch * plan.chunks * plan.bands >= kEnoughBlocks;
    if (enough || plan.lanes == kLeastChannelLanes<Size>) return plan;
  }
}

// Forward, a block takes all rows of cells where there are blocks enough.
template <int Size>
ChannelPlan make_fwd_channel_plan(const PyramidPoolParams& params) {
  ChannelPlan plan{.lanes = kMostChannelLanes<Size>};
  for (;; plan.lanes /= 2) {
    plan.chunks = ceil_div(params.channels, plan.lanes * Size);
    const int64_t bands = ceil_div(kEnoughBlocks, params.batch * plan.chunks);
    plan.bands = static_cast<int>(std::min<int64_t>(bands, params.cells.rows.count));
    if (plan.bands == bands || plan.lanes == kLeastChannelLanes<Size>) break;
  }
  // Of a single band, the sums of cells lie in shared memory.
  const auto fits = [&] { return cell_bytes<Size>(params, plan.lanes) <= kMaxSharedBytes; };
  while (plan.bands == 1 && plan.lanes > 1 && !fits()) plan.lanes /= 2;
  plan.chunks = ceil_div(params.channels, plan.lanes * Size);
  if (!fits()) plan.bands = std::max(plan.bands, 2);
  return plan;
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

// The sum of cells of rows of cells, which sums_at(cell) points to, at a bin's rows and columns.
template <typename SumAt>
__device__ inline float sum_of_bin(const PyramidCells& cells, const Bin& bin, const SumAt& sum_at) {
  float total = 0;
  for (int r = cells.rows.begin[bin.row]; r < cells.rows.end[bin.row]; ++r) {
    for (int c = cells.cols.begin[bin.col]; c < cells.cols.end[bin.col]; ++c) {
      total += sum_at(r * cells.cols.count + c);
    }
  }
  return total;
}

// Pools channels_last maps: x [N, H, W, C] and pooled [N, S, C] in memory. With several bands the sums of cells go to
// cell_sums [N, cells, C] instead.
template <typename T, int Size>
__global__ void __launch_bounds__(kChannelThreads, kChannelBlocks)
    channel_fwd_kernel(const __grid_constant__ PyramidPoolParams params, const __grid_constant__ ChannelPlan plan,
                       const T* __restrict__ x, float* __restrict__ cell_sums, T* __restrict__ pooled) {
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
    const int band = blockIdx.y;
    const int end_cell = rows.count * (band + 1) / plan.bands * cols.count;
    for (int cell = rows.count * band / plan.bands * cols.count + at.warp; cell < end_cell; cell += kChannelWarps) {
      const int r = cell / cols.count;
      const int c = cell % cols.count;
      sum_pixels(params, image, at, {rows.edge[r], rows.edge[r + 1], cols.edge[c], cols.edge[c + 1]}, sum);
      if (at.slot > 0) continue;
      if (plan.bands > 1) {
        float* to = cell_sums + (at.image * rows.count * cols.count + cell) * params.channels + at.channel;
#pragma unroll
        for (int i = 0; i < Size; ++i) {
          if (at.channel < params.channels) to[i] = sum[i];
        }
        continue;
      }
#pragma unroll
      for (int i = 0; i < Size; ++i) sums[cell * block_channels + at.lane * Size + i] = sum[i];
    }
    if (plan.bands > 1) continue;
    __syncthreads();
    const int64_t block_channel = block % plan.chunks * block_channels;
    for (int task = threadIdx.x; task < cells.bin_count * block_channels; task += kChannelThreads) {
      const int s = task / block_channels;
      const int within = task % block_channels;
      if (block_channel + within >= params.channels) continue;
      const Bin bin = bin_at(cells, s);
      const float total = sum_of_bin(cells, bin, [&](int cell) { return sums[cell * block_channels + within]; });
      out[s * params.channels + block_channel + within] = from_float<T>(total / area_of(cells, bin.row, bin.col));
    }
    __syncthreads();
  }
}

// Bins from the sums of cells [N, cells, C]: pooled [N, S, C].
template <typename T>
__global__ void __launch_bounds__(kChannelThreads)
    add_cells_kernel(const __grid_constant__ PyramidPoolParams params, const float* __restrict__ cell_sums,
                     T* __restrict__ pooled) {
  const PyramidCells& cells = params.cells;
  const int64_t count = params.batch * cells.bin_count * params.channels;
  const int64_t image_size = int64_t{cells.rows.count} * cells.cols.count * params.channels;
  for (int64_t i = int64_t{blockIdx.x} * kChannelThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kChannelThreads) {
    const int64_t channel = i % params.channels;
    const Bin bin = bin_at(cells, static_cast<int>(i / params.channels % cells.bin_count));
    const float* image = cell_sums + i / params.channels / cells.bin_count * image_size + channel;
    const float total = sum_of_bin(cells, bin, [&](int cell) { return image[cell * params.channels]; });
    pooled[i] = from_float<T>(total / area_of(cells, bin.row, bin.col));
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
