// upsample_cross_entropy, forward: sums of powers of a chunk of classes relative to the largest logit so far, then the
// loss of every pixel, and a block's sums of them.
#pragma once

#include "../upsample_cross_entropy.h"
#include "upsample_columns.cuh"

namespace pspfast::cuda {

// values[r] of an array in registers, which have no addresses.
template <typename V, int R>
__device__ inline V pick(const V (&values)[R], int r) {
  V value = values[0];
#pragma unroll
  for (int i = 1; i < R; ++i) value = i == r ? values[i] : value;
  return value;
}

// Sums over the classes of a thread's pixels.
template <int R, bool Smooth>
struct LossColumn {
  float largest[R], sum[R];  // of exp(logit - largest)
  int label[R];
  // With label smoothing: the sum over classes of weight * (logit - largest), and the weights' own.
  float weighted[R], weight_sum;

  __device__ LossColumn() : weight_sum(0) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      largest[r] = -kInfinity;
      sum[r] = weighted[r] = 0;
      label[r] = 0;
    }
  }

  __device__ void add(const ColumnChunk<R>& chunk, bool labels, const float* weight) {
    float before[R];
#pragma unroll
    for (int r = 0; r < R; ++r) before[r] = largest[r];
    labels ? find_labels(chunk, largest, label) : find_largest(chunk, largest);
    rescale(before, largest, sum);
    if constexpr (!Smooth) {
      add_powers(chunk, largest, sum);
      return;
    }
    if (chunk.first > 0) {
#pragma unroll
      for (int r = 0; r < R; ++r) weighted[r] += weight_sum * (before[r] - largest[r]);
    }
    for (int k = 0; k < chunk.classes; ++k) {
      const ColumnLine line = chunk.line(k);
      const float of_class = weight ? weight[chunk.first + k] : 1.f;
      weight_sum += of_class;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float below = line.at(chunk.row_weights[r]) - largest[r];
        sum[r] += exp_of_negative(below);
        weighted[r] += of_class * below;
      }
    }
  }
};

// With label smoothing a pixel has a weighted sum besides, which takes more registers.
template <bool Smooth>
constexpr int kLossBlocks = Smooth ? kColumnBlocks - 2 : kColumnBlocks;

// lse [N, H, W], labels [N, H, W] of label_type and sums [blocks, 3] (losses, weights, invalid targets), from logits
// [N, K, rows, cols], in memory [N, rows, cols, K] if channels_last, target [N, H, W] and weight [K]. labels and weight
// may be null.
template <typename T, int R, bool Smooth>
__global__ void __launch_bounds__(kColumnThreads, kLossBlocks<Smooth>)
    loss_fwd_kernel(const __grid_constant__ UpsampleLossParams params, const __grid_constant__ ColumnPlan plan,
                    const T* __restrict__ logits, const int64_t* __restrict__ target, const float* __restrict__ weight,
                    float* __restrict__ lse, LabelType label_type, void* __restrict__ labels,
                    double* __restrict__ sums) {
  PSPFAST_SHARED(bytes);
  const ColumnShared shared(plan, bytes);
  const float smooth = static_cast<float>(params.label_smoothing / params.classes);
  const float one = static_cast<float>(1 - params.label_smoothing);
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const ColumnTile tile(params, plan, block);
    const ImageLogits<T> image(params, logits, tile.image);
    double losses = 0, weights = 0;
    int invalid = 0;
    for (int row = tile.first_row; row < tile.end_row; row += R) {
      LossColumn<R, Smooth> column;
      for_each_chunk<R>(params, plan, tile, image, row, shared,
                        [&](const ColumnChunk<R>& chunk) { column.add(chunk, labels != nullptr, weight); });
      if (!tile.has_col) continue;
      // Stays a loop: the compiler would copy its body many more times than R.
#pragma unroll 1
      for (int r = 0; r < min(R, tile.end_row - row); ++r) {
        const int64_t pixel = tile.pixel(params, row + r);
        const float largest = pick(column.largest, r);
        const float log_sum = logf(pick(column.sum, r));
        lse[pixel] = largest + log_sum;
        if (labels) store_label(label_type, labels, pixel, class_of(pick(column.label, r)));
        const int64_t t = target[pixel];
        if (t == params.ignore_index) continue;
        if (t < 0 || t >= params.classes) {
          ++invalid;
          continue;
        }
        const float of_target = weight ? weight[t] : 1.f;
        const Cell cell = image.cell(t, tile.source_row, tile.source_col);
        const float value = cell.at(tile.col_weight).at(shared.row_weights[r]);
        // The largest logit cancels before the logarithm is added: a loss may be much less than either.
        float loss = one * of_target * ((largest - value) + log_sum);
        if (Smooth) loss += smooth * (column.weight_sum * log_sum - pick(column.weighted, r));
        losses += loss;
        weights += of_target;
      }
    }
    double* const to = sums + block * 3;
    const double values[] = {losses, weights, static_cast<double>(invalid)};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const double sum = block_sum<kColumnWarps>(values[i], shared.scratch);
      if (threadIdx.x == 0) to[i] = sum;
    }
  }
}

}  // namespace pspfast::cuda
