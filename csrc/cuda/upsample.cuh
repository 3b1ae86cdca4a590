// Logits interpolated in registers, for the CUDA kernels of upsample_cross_entropy, upsample_argmax and
// upsample_softmax. Between two rows and two columns of logits lies a cell, on which a class is a polynomial of the
// pixel's weights: a block writes the coefficients of its cells to shared memory, a chunk of classes at a time, and one
// multiply-add makes a pixel's logit of what is the same for all pixels of its column.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../upsample.h"
#include "launch.h"
#include "vector.cuh"

namespace pspfast::cuda {

// Calls f with a null pointer to the element type and returns what it returns.
template <typename F>
cudaError_t dispatch_logits(const UpsampleParams& params, const F& f) {
  switch (params.dtype) {
    case DType::kFloat32: f(static_cast<const float*>(nullptr)); break;
    case DType::kFloat16: f(static_cast<const __half*>(nullptr)); break;
    case DType::kBFloat16: f(static_cast<const __nv_bfloat16*>(nullptr)); break;
    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline unsigned logits_grid(int64_t blocks) { return static_cast<unsigned>(std::min(blocks, kMaxGridX)); }

// exp(x) for x <= 0, to 2 units of the last place; 0 where float has no normal numbers, which exp2f would spend half of
// its instructions on.
__device__ inline float exp_of_negative(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * kLog2E));
  return power;
#else
  return exp2f(x * kLog2E);
#endif
}

__device__ inline Tap<float> row_tap(const UpsampleParams& params, int row) {
  return interpolation_tap<float>(row, static_cast<int>(params.height), static_cast<int>(params.rows),
                                  params.align_corners);
}
__device__ inline Tap<float> col_tap(const UpsampleParams& params, int col) {
  return interpolation_tap<float>(col, static_cast<int>(params.width), static_cast<int>(params.cols),
                                  params.align_corners);
}
__device__ inline int first_row(const UpsampleParams& params, int source) {
  return first_position(source, static_cast<int>(params.height), static_cast<int>(params.rows), params.align_corners);
}
__device__ inline int first_col(const UpsampleParams& params, int source) {
  return first_position(source, static_cast<int>(params.width), static_cast<int>(params.cols), params.align_corners);
}

// One class between two columns of logits, at a column of pixels: a row of weight w has value + w * step.
struct ColumnLine {
  float value, step;

  __device__ float at(float row_weight) const { return fmaf(row_weight, step, value); }
};

__device__ inline bool is_nan(float value) { return value != value; }

// One class between two rows and two columns of logits. `value` is NaN if one of these four is, and only then.
struct alignas(kVectorBytes) Cell {
  float value, col_step, row_step, both_step;

  __device__ ColumnLine at(float col_weight) const {
    return {fmaf(col_weight, col_step, value), fmaf(col_weight, both_step, row_step)};
  }
};

// The logits of one image. The fused multiply-adds are spelled out: a logit is the same number wherever it is computed.
template <typename T>
struct ImageLogits {
  const T* data;
  int64_t class_stride, row_stride, col_stride;
  int rows, cols;
  bool channels_last;

  __device__ ImageLogits(const UpsampleParams& params, const T* logits, int64_t image)
      : data(logits + image * params.classes * params.rows * params.cols),
        class_stride(params.channels_last ? 1 : params.rows * params.cols),
        row_stride(params.channels_last ? params.cols * params.classes : params.cols),
        col_stride(params.channels_last ? params.classes : 1),
        rows(static_cast<int>(params.rows)),
        cols(static_cast<int>(params.cols)),
        channels_last(params.channels_last) {}

  __device__ int64_t offset(int64_t k, int row, int col) const {
    return k * class_stride + row * row_stride + col * col_stride;
  }

  // The cell between `row` and the next, `col` and the next; behind the last lies itself.
  __device__ Cell cell(int64_t k, int row, int col) const {
    const T* from = data + offset(k, row, col);
    const int64_t below = row + 1 < rows ? row_stride : 0;
    const int64_t right = col + 1 < cols ? col_stride : 0;
    const float a = to_float(from[0]);
    const float b = to_float(from[right]);
    const float c = to_float(from[below]);
    const float d = to_float(from[below + right]);
    return {is_nan(b) || is_nan(c) || is_nan(d) ? NAN : a, b - a, c - a, (d - c) - (b - a)};
  }

  // to [classes, stride]: cells of `row` whose columns are source(0), source(1), … of classes from `first` on.
  template <typename Source>
  __device__ void stage(int64_t first, int classes, int row, int cells, int stride, const Source& source,
                        Cell* to) const {
#pragma unroll 1
    for (int task = threadIdx.x; task < classes * cells; task += blockDim.x) {
      // Neighbouring threads read along memory.
      const int k = channels_last ? task % classes : task / cells;
      const int i = channels_last ? task / classes : task % cells;
      to[k * stride + i] = cell(first + k, row, source(i));
    }
  }
};

__device__ inline void store_label(LabelType type, void* labels, int64_t pixel, int label) {
  switch (type) {
    case LabelType::kUInt8: static_cast<uint8_t*>(labels)[pixel] = static_cast<uint8_t>(label); break;
    case LabelType::kInt32: static_cast<int32_t*>(labels)[pixel] = label; break;
    case LabelType::kInt64: static_cast<int64_t*>(labels)[pixel] = label; break;
  }
}

// The sum over a block of `Warps` whole warps, in every thread and in a fixed order; scratch [Warps].
template <int Warps>
__device__ inline double block_sum(double value, double* scratch) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kFullWarp, value, offset);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < Warps; ++warp) sum += scratch[warp];
  return sum;
}

}  // namespace pspfast::cuda
