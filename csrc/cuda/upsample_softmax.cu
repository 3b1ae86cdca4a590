// upsample_softmax on CUDA: logits are interpolated in registers, in two passes over the classes.
#include "../upsample_softmax.h"

#include "upsample_columns.cuh"

namespace pspfast::cuda {
namespace {

// probabilities [N, K, H, W] with the strides of `output`, from logits [N, K, rows, cols], in memory [N, rows, cols, K]
// if channels_last.
template <typename T, int R>
__global__ void __launch_bounds__(kColumnThreads, kColumnBlocks)
    softmax_kernel(const __grid_constant__ UpsampleParams params, const __grid_constant__ ColumnPlan plan,
                   const __grid_constant__ SoftmaxOutput output, const T* __restrict__ logits,
                   float* __restrict__ probabilities) {
  PSPFAST_SHARED(bytes);
  const ColumnShared shared(plan, bytes);
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const ColumnTile tile(params, plan, block);
    const ImageLogits<T> image(params, logits, tile.image);
    const int col = output.flip ? static_cast<int>(params.width) - 1 - tile.col : tile.col;
    float* const to_col = probabilities + tile.image * output.image_stride + col * output.col_stride;
    for (int row = tile.first_row; row < tile.end_row; row += R) {
      float largest[R], sum[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        largest[r] = -kInfinity;
        sum[r] = 0;
      }
      for_each_chunk<R>(params, plan, tile, image, row, shared, [&](const ColumnChunk<R>& chunk) {
        float before[R];
#pragma unroll
        for (int r = 0; r < R; ++r) before[r] = largest[r];
        find_largest(chunk, largest);
        rescale(before, largest, sum);
        add_powers(chunk, largest, sum);
      });
      float scale[R];
#pragma unroll
      for (int r = 0; r < R; ++r) scale[r] = static_cast<float>(output.weight) / sum[r];
      for_each_chunk<R>(params, plan, tile, image, row, shared, [&](const ColumnChunk<R>& chunk) {
        if (!tile.has_col) return;
        float* to = to_col + chunk.first * output.class_stride + row * output.row_stride;
        for (int k = 0; k < chunk.classes; ++k, to += output.class_stride) {
          const ColumnLine line = chunk.line(k);
          // All loads before the first store, which they would have to wait for.
          float old[R];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            old[r] = output.add && row + r < tile.end_row ? to[r * output.row_stride] : 0.f;
          }
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const float power = exp_of_negative(line.at(chunk.row_weights[r]) - largest[r]);
            if (row + r < tile.end_row) to[r * output.row_stride] = old[r] + power * scale[r];
          }
        }
      });
    }
  }
}

}  // namespace

cudaError_t upsample_softmax(const UpsampleParams& params, const SoftmaxOutput& output, const void* logits,
                             void* probabilities, cudaStream_t stream) {
  const ColumnPlan plan = make_column_plan(params);
  return dispatch_logits(params, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const auto kernel = has_many_rows(params) ? softmax_kernel<T, kManyRows> : softmax_kernel<T, kFewRows>;
    PSPFAST_LAUNCH(kernel, logits_grid(plan.blocks), kColumnThreads, ColumnShared::bytes(plan), stream, params, plan,
                   output, static_cast<const T*>(logits), static_cast<float*>(probabilities));
  });
}

}  // namespace pspfast::cuda
