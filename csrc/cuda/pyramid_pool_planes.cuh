// pyramid_pool of contiguous maps: a block takes one plane [H, W]. Memory is copied to and from shared memory in
// 16-byte accesses whatever the width and alignment; the sums run there, rows of a band first, columns next.
#pragma once

#include <algorithm>

#include "../pyramid_pool.h"
#include "cells.cuh"
#include "launch.h"
#include "vector.cuh"

namespace pspfast::cuda {

constexpr int kPlaneThreads = 128;
// A 60 x 60 plane, the map of a 473 x 473 image, fits whole.
constexpr int kTileElements = 3840;

// How plane_* kernels cut a plane: `rows` whole rows at a time, or `cols` of one row where a row exceeds the tile.
// Either way the piece is one run of memory.
struct PlanePlan {
  int rows, cols;
  int axis_bins;                             // sum of b
  int tile_bytes;                            // T [rows * cols], and room for the run's phase
  int strip_count, column_count, sum_count;  // float counts of the tables behind the tile
};

inline int64_t shared_bytes(const PlanePlan& plan) {
  return plan.tile_bytes + sizeof(float) * (int64_t{plan.strip_count} + plan.column_count + plan.sum_count);
}

template <typename T>
PlanePlan make_plane_plan(const PyramidPoolParams& params) {
  const PyramidCells& cells = params.cells;
  PlanePlan plan{};
  plan.axis_bins = cells.axis_offset[cells.levels - 1] + cells.bins[cells.levels - 1];
  plan.cols = static_cast<int>(std::min<int64_t>(params.width, kTileElements));
  plan.rows = static_cast<int>(std::min<int64_t>(params.height, kTileElements / plan.cols));
  for (;; plan.rows = (plan.rows + 1) / 2) {
    // A band of a run has a row of it, so there are no more bands than rows.
    const int bands = std::min(plan.rows, cells.rows.count);
    plan.tile_bytes = (plan.rows * plan.cols * static_cast<int>(sizeof(T)) / kVectorBytes + 2) * kVectorBytes;
    plan.strip_count = bands * plan.cols;
    plan.column_count = bands * plan.axis_bins;
    plan.sum_count = cells.bin_count;
    if (plan.rows == 1 || shared_bytes(plan) <= kMaxSharedBytes) return plan;
  }
}

// Elements between the last 16-byte boundary and `pointer`.
template <typename T>
__device__ inline int phase_of(const T* pointer) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(pointer) % kVectorBytes / sizeof(T));
}

// Copies elements [phase, phase + count), both sides 16-byte aligned at element 0.
template <bool ToGlobal, typename T>
__device__ inline void copy_run(const T* __restrict__ from, T* __restrict__ to, int phase, int count) {
  constexpr int kSize = kVectorSize<T>;
  const int end = phase + count;
  const int first = phase > 0 ? kSize : 0;
  const int last = end / kSize * kSize;
#pragma unroll 4
  for (int i = first + threadIdx.x * kSize; i < last; i += kPlaneThreads * kSize) {
    store<ToGlobal>(to + i, load<kSize>(from + i));
  }
  const int head = threadIdx.x;
  if (head >= phase && head < min(first, end)) to[head] = from[head];
  const int tail = last + threadIdx.x;
  if (last >= first && tail < end) to[tail] = from[tail];
}

// Pools contiguous planes: x [N, C, H, W], pooled [N, C, S]. A block takes a plane at a time.
template <typename T>
__global__ void __launch_bounds__(kPlaneThreads)
    plane_fwd_kernel(const __grid_constant__ PyramidPoolParams params, const __grid_constant__ PlanePlan plan,
                     const T* __restrict__ x, T* __restrict__ pooled) {
  PSPFAST_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  float* strips = reinterpret_cast<float*>(shared + plan.tile_bytes);  // [bands, columns of the run]
  float* columns = strips + plan.strip_count;                          // [axis_bins, bands]
  float* sums = columns + plan.column_count;                           // [S], of the runs before
  const PyramidCells& cells = params.cells;
  const int height = static_cast<int>(params.height);
  const int width = static_cast<int>(params.width);
  for (int64_t plane = blockIdx.x; plane < params.batch * params.channels; plane += gridDim.x) {
    for (int row = 0; row < height; row += plan.rows) {
      const int rows = min(plan.rows, height - row);
      const int band = cell_at(cells.rows, row);
      const int bands = cell_at(cells.rows, row + rows - 1) + 1 - band;
      for (int col = 0; col < width; col += plan.cols) {
        const int cols = min(plan.cols, width - col);
        const T* run = x + (plane * height + row) * width + col;
        const int phase = phase_of(run);
        copy_run<false>(run - phase, tile, phase, rows * cols);
        __syncthreads();
        for (int task = threadIdx.x; task < bands * cols; task += kPlaneThreads) {
          const int b = band + task / cols;
          const T* column = tile + phase + task % cols;
          const int end = min(cells.rows.edge[b + 1] - row, rows);
          float sum = 0;
          for (int r = max(cells.rows.edge[b] - row, 0); r < end; ++r) sum += to_float(column[r * cols]);
          strips[task] = sum;
        }
        __syncthreads();
        for (int task = threadIdx.x; task < bands * plan.axis_bins; task += kPlaneThreads) {
          // Bins outermost: the lanes of a warp then sum about equally many columns.
          const int bin = task / bands;
          const float* strip = strips + task % bands * cols;
          const int end = min(cells.cols.edge[cells.cols.end[bin]] - col, cols);
          float sum = 0;
          for (int c = max(cells.cols.edge[cells.cols.begin[bin]] - col, 0); c < end; ++c) sum += strip[c];
          columns[task] = sum;
        }
        __syncthreads();
        const bool is_first = row == 0 && col == 0;
        const bool is_last = row + rows == height && col + cols == width;
        for (int s = threadIdx.x; s < cells.bin_count; s += kPlaneThreads) {
          const Bin bin = bin_at(cells, s);
          const int end = min(cells.rows.end[bin.row] - band, bands);
          // sums[s] is this thread's own: no barrier stands between its uses.
          float sum = is_first ? 0.f : sums[s];
          for (int b = max(cells.rows.begin[bin.row] - band, 0); b < end; ++b) sum += columns[bin.col * bands + b];
          if (is_last) {
            pooled[plane * cells.bin_count + s] = from_float<T>(sum / area_of(cells, bin.row, bin.col));
          } else {
            sums[s] = sum;
          }
        }
      }
    }
  }
}

// The gradient of contiguous planes: grad_pooled [N, C, S], grad_x [N, C, H, W]. A block takes a plane at a time.
template <typename T>
__global__ void __launch_bounds__(kPlaneThreads)
    plane_bwd_kernel(const __grid_constant__ PyramidPoolParams params, const __grid_constant__ PlanePlan plan,
                     const T* __restrict__ grad_pooled, T* __restrict__ grad_x) {
  PSPFAST_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);
  float* columns = reinterpret_cast<float*>(shared + plan.tile_bytes);  // [axis_bins, bands]
  const PyramidCells& cells = params.cells;
  const int height = static_cast<int>(params.height);
  const int width = static_cast<int>(params.width);
  for (int64_t plane = blockIdx.x; plane < params.batch * params.channels; plane += gridDim.x) {
    const T* grad = grad_pooled + plane * cells.bin_count;
    for (int row = 0; row < height; row += plan.rows) {
      const int rows = min(plan.rows, height - row);
      const int band = cell_at(cells.rows, row);
      const int bands = cell_at(cells.rows, row + rows - 1) + 1 - band;
      for (int task = threadIdx.x; task < bands * plan.axis_bins; task += kPlaneThreads) {
        const int bin_col = task / bands;
        int level = 0;
        while (level + 1 < cells.levels && bin_col >= cells.axis_offset[level + 1]) ++level;
        const int bins = cells.bins[level];
        const T* column = grad + cells.bin_offset[level] + bin_col - cells.axis_offset[level];
        float sum = 0;
        for (int u = 0; u < bins; ++u) {
          const int bin_row = cells.axis_offset[level] + u;
          if (!covers(cells.rows, bin_row, band + task % bands)) continue;
          sum += to_float(column[u * bins]) / area_of(cells, bin_row, bin_col);
        }
        columns[task] = sum;
      }
      for (int col = 0; col < width; col += plan.cols) {
        const int cols = min(plan.cols, width - col);
        T* run = grad_x + (plane * height + row) * width + col;
        const int phase = phase_of(run);
        __syncthreads();
        for (int task = threadIdx.x; task < bands * cols; task += kPlaneThreads) {
          const int b = task / cols;
          const int c = task % cols;
          float sum = 0;
          for (int bin = 0; bin < plan.axis_bins; ++bin) {
            const int begin = cells.cols.edge[cells.cols.begin[bin]];
            const int end = cells.cols.edge[cells.cols.end[bin]];
            if (begin <= col + c && col + c < end) sum += columns[bin * bands + b];
          }
          const T value = from_float<T>(sum);
          const int end = min(cells.rows.edge[band + b + 1] - row, rows);
          for (int r = max(cells.rows.edge[band + b] - row, 0); r < end; ++r) tile[phase + r * cols + c] = value;
        }
        __syncthreads();
        copy_run<true>(tile, run - phase, phase, rows * cols);
      }
    }
  }
}

}  // namespace pspfast::cuda
