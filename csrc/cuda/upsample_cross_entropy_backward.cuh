// upsample_cross_entropy, backward: a thread takes one class of one cell, all pixels between two rows and two columns
// of logits, and sums their gradients into the cell's corners, so that no exponential is taken twice. A block adds the
// corners of neighbouring cells along its run of columns; a second kernel adds what the rows of cells give to the row
// between them.
#pragma once

#include "../upsample_cross_entropy.h"
#include "upsample.cuh"

namespace pspfast::cuda {

constexpr int kGradThreads = 128;
constexpr int kGradWarps = kGradThreads / kWarpSize;
// Blocks resident on a multiprocessor: so many leave a thread 96 registers, and takes 175 of the 228 KB of shared
// memory of sm_90.
constexpr int kGradBlocks = 5;
// Columns of logits whose gradients a block sums. It works on one cell more, to the left of the first.
constexpr int kGradSources = 15;
// With fewer blocks than kEnoughBlocks a block takes fewer columns, down to eight: the one cell more is an eighth of
// its work then.
constexpr int64_t kLeastGradSources = 8;
constexpr int kGradCells = kGradSources + 1;
constexpr int kCellStride = kGradCells | 1;  // odd, for threads that have a class each to meet different banks
// Classes of a block: 512 threads' work on 16 cells.
constexpr int kGradClasses = 32;
// Pixels that a block keeps in shared memory, those of 16 cells of 8 x 8 pixels.
constexpr int kStripRows = 8;
constexpr int kStripCols = 128;

struct GradPlan {
  int64_t runs, chunks, blocks;  // runs of the columns of a row of logits, and chunks of classes
  int sources, classes;          // of a block
};

inline GradPlan make_grad_plan(const UpsampleLossParams& params) {
  GradPlan plan{};
  plan.chunks = ceil_div(params.classes, kGradClasses);
  const int64_t enough = std::min(ceil_div(kEnoughBlocks, params.batch * params.rows * plan.chunks),
                                  ceil_div(params.cols, kLeastGradSources));
  const int64_t runs = std::max(ceil_div(params.cols, int64_t{kGradSources}), enough);
  plan.sources = static_cast<int>(ceil_div(params.cols, runs));
  // Columns in whole runs may be fewer.
  plan.runs = ceil_div(params.cols, plan.sources);
  plan.blocks = params.batch * params.rows * plan.runs * plan.chunks;
  plan.classes = static_cast<int>(ceil_div(params.classes, plan.chunks));
  return plan;
}

// A pixel's gradient with respect to class k, which has probability exp(logit - lse), is
// all * probability - (k is target) * one - (target >= 0) * weight[k] * smoothing / K.
struct alignas(kVectorBytes) GradPixel {
  float lse, all, one;
  int target;  // negative: the pixel does not count
};

// Gradients of the logits above and below, to the left and to the right of a cell.
struct alignas(kVectorBytes) Corners {
  float above_left, above_right, below_left, below_right;
};

struct GradShared {
  GradPixel pixels[kStripCols][kStripRows];
  // [classes, kCellStride]
  Cell cells[kGradClasses * kCellStride];
  Corners corners[kGradClasses * kCellStride];
  double scratch[kGradWarps];
  alignas(kVectorBytes) float above[kStripRows], below[kStripRows];  // weights of the strip's rows
  float left[kStripCols], right[kStripCols];                         // and of its columns
  int first_col[kGradCells + 1];                                     // each cell's first column, and the end
};
static_assert(sizeof(GradShared) <= kMaxSharedBytes);

// A strip of pixels: at most kStripRows x kStripCols.
struct Strip {
  int row, col, rows, cols;
};

struct LossPixels {
  const int64_t* target;
  const float* weight;
  const float* lse;
  float one, smooth, weight_sum;  // 1 - s, s / K and U of upsample_cross_entropy.h
};

__device__ inline void stage_strip(const UpsampleLossParams& params, const LossPixels& pixels, int64_t image,
                                   const Strip& strip, GradShared& shared) {
#pragma unroll 1
  for (int task = threadIdx.x; task < kStripRows * strip.cols; task += kGradThreads) {
    const int row = task / strip.cols;
    const int col = task % strip.cols;
    // Rows behind the strip's last add nothing: they do not count, and have no probability.
    GradPixel staged{kInfinity, 0.f, 0.f, -1};
    if (row < strip.rows) {
      const int64_t pixel = (image * params.height + strip.row + row) * params.width + strip.col + col;
      const int64_t t = pixels.target[pixel];
      if (t != params.ignore_index && 0 <= t && t < params.classes) {
        const float one = pixels.one * (pixels.weight ? pixels.weight[t] : 1.f);
        staged = {pixels.lse[pixel], one + pixels.smooth * pixels.weight_sum, one, static_cast<int>(t)};
      }
    }
    shared.pixels[col][row] = staged;
  }
#pragma unroll 1
  for (int col = threadIdx.x; col < strip.cols; col += kGradThreads) {
    const Tap<float> tap = col_tap(params, strip.col + col);
    shared.right[col] = tap.high > tap.low ? tap.weight : 0.f;
    shared.left[col] = 1.f - shared.right[col];
  }
  if (threadIdx.x < kStripRows) {
    const Tap<float> tap = row_tap(params, strip.row + min(static_cast<int>(threadIdx.x), strip.rows - 1));
    shared.below[threadIdx.x] = tap.high > tap.low ? tap.weight : 0.f;
    shared.above[threadIdx.x] = 1.f - shared.below[threadIdx.x];
  }
}

// Adds the strip's columns [begin, end) of class k to the corners of their cell.
template <bool Smooth>
__device__ inline void add_pixels(const GradShared& shared, const Cell& cell, int k, float smooth, int begin, int end,
                                  Corners& corners) {
  float row_above[kStripRows], row_below[kStripRows];
#pragma unroll
  for (int r = 0; r < kStripRows; ++r) {
    row_above[r] = shared.above[r];
    row_below[r] = shared.below[r];
  }
#pragma unroll 1
  for (int col = begin; col < end; ++col) {
    const ColumnLine line = cell.at(shared.right[col]);
    float above = 0, below = 0;
#pragma unroll
    for (int r = 0; r < kStripRows; ++r) {
      const GradPixel pixel = shared.pixels[col][r];
      float grad = pixel.all * exp_of_negative(line.at(row_below[r]) - pixel.lse);
      if (pixel.target == k) grad -= pixel.one;
      if (Smooth && pixel.target >= 0) grad -= smooth;
      above += row_above[r] * grad;
      below += row_below[r] * grad;
    }
    corners.above_left += shared.left[col] * above;
    corners.above_right += shared.right[col] * above;
    corners.below_left += shared.left[col] * below;
    corners.below_right += shared.right[col] * below;
  }
}

// partial [2, N K rows cols]: gradients, without the scale, of the rows above and below each row of cells, both at the
// place of the row above. They follow from logits [N, K, rows, cols], in memory [N, rows, cols, K] if channels_last,
// target [N, H, W], weight [K], which may be null, and lse [N, H, W].
template <typename T, bool Smooth>
__global__ void __launch_bounds__(kGradThreads, kGradBlocks)
    loss_bwd_kernel(const __grid_constant__ UpsampleLossParams params, const __grid_constant__ GradPlan plan,
                    const T* __restrict__ logits, const int64_t* __restrict__ target, const float* __restrict__ weight,
                    const float* __restrict__ lse, float* __restrict__ partial) {
  PSPFAST_SHARED(bytes);
  GradShared& shared = *reinterpret_cast<GradShared*>(bytes);
  LossPixels pixels{target,
                    weight,
                    lse,
                    static_cast<float>(1 - params.label_smoothing),
                    static_cast<float>(params.label_smoothing / params.classes),
                    0.f};
  if (Smooth) {
    double sum = 0;
#pragma unroll 1
    for (int64_t k = threadIdx.x; k < params.classes; k += kGradThreads) sum += weight ? weight[k] : 1.f;
    pixels.weight_sum = static_cast<float>(block_sum<kGradWarps>(sum, shared.scratch));
  }
  const int64_t size = params.batch * params.classes * params.rows * params.cols;
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const int64_t first_class = block % plan.chunks * plan.classes;
    const int64_t row_run = block / plan.chunks;
    const int first_source = static_cast<int>(row_run % plan.runs) * plan.sources;
    const int source_row = static_cast<int>(row_run / plan.runs % params.rows);
    const int64_t n = row_run / plan.runs / params.rows;
    const int classes = static_cast<int>(min(int64_t{plan.classes}, params.classes - first_class));
    const int sources = min(plan.sources, static_cast<int>(params.cols) - first_source);
    const int before = first_source > 0 ? 1 : 0;
    const int cells = sources + before;
    const ImageLogits<T> image(params, logits, n);
    __syncthreads();
    image.stage(
        first_class, classes, source_row, cells, kCellStride, [&](int i) { return first_source - before + i; },
        shared.cells);
#pragma unroll 1
    for (int i = threadIdx.x; i < kGradClasses * kCellStride; i += kGradThreads) shared.corners[i] = {};
    if (threadIdx.x <= cells) shared.first_col[threadIdx.x] = first_col(params, first_source - before + threadIdx.x);
    __syncthreads();
    const int end_row = first_row(params, source_row + 1);
    const int end_col = shared.first_col[cells];
    for (int row = first_row(params, source_row); row < end_row; row += kStripRows) {
      for (int col = shared.first_col[0]; col < end_col; col += kStripCols) {
        const Strip strip{row, col, min(kStripRows, end_row - row), min(kStripCols, end_col - col)};
        __syncthreads();
        stage_strip(params, pixels, n, strip, shared);
        __syncthreads();
#pragma unroll 1
        for (int task = threadIdx.x; task < classes * cells; task += kGradThreads) {
          const int k = task % classes;
          const int i = task / classes;
          const int64_t own = first_class + k;
          const int begin = max(shared.first_col[i] - col, 0);
          const int end = min(shared.first_col[i + 1] - col, strip.cols);
          const float smooth = Smooth ? pixels.smooth * (weight ? weight[own] : 1.f) : 0.f;
          const int at = k * kCellStride + i;
          Corners corners = shared.corners[at];
          add_pixels<Smooth>(shared, shared.cells[at], static_cast<int>(own), smooth, begin, end, corners);
          shared.corners[at] = corners;
        }
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int task = threadIdx.x; task < classes * sources; task += kGradThreads) {
      // Neighbouring threads write along memory.
      const int k = params.channels_last ? task % classes : task / sources;
      const int i = params.channels_last ? task / classes : task % sources;
      const Corners* corners = &shared.corners[k * kCellStride + before + i];
      float above = corners->above_left;
      float below = corners->below_left;
      if (before + i > 0) {
        above += corners[-1].above_right;
        below += corners[-1].below_right;
      }
      const int64_t to = image.offset(first_class + k, source_row, first_source + i) + n * (size / params.batch);
      partial[to] = above;
      // Nothing lies below the last row: what follows it in memory is the first row of another class or image.
      partial[size + to] = source_row + 1 < params.rows ? below : 0.f;
    }
  }
}

}  // namespace pspfast::cuda
