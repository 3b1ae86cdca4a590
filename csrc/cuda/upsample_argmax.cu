// upsample_argmax on CUDA: logits are interpolated in registers, in one pass over the classes.
#include "../upsample_argmax.h"

#include "upsample_columns.cuh"

namespace pspfast::cuda {
namespace {

// labels [N, H, W] of label_type, from logits [N, K, rows, cols], in memory [N, rows, cols, K] if channels_last.
template <typename T, int R>
__global__ void __launch_bounds__(kColumnThreads, kColumnBlocks)
    argmax_kernel(const __grid_constant__ UpsampleParams params, const __grid_constant__ ColumnPlan plan,
                  const T* __restrict__ logits, LabelType label_type, void* __restrict__ labels) {
  PSPFAST_SHARED(bytes);
  const ColumnShared shared(plan, bytes);
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const ColumnTile tile(params, plan, block);
    const ImageLogits<T> image(params, logits, tile.image);
    for (int row = tile.first_row; row < tile.end_row; row += R) {
      float largest[R];
      int label[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        largest[r] = -kInfinity;
        label[r] = 0;
      }
      for_each_chunk<R>(params, plan, tile, image, row, shared,
                        [&](const ColumnChunk<R>& chunk) { find_labels(chunk, largest, label); });
      if (!tile.has_col) continue;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (row + r < tile.end_row) store_label(label_type, labels, tile.pixel(params, row + r), class_of(label[r]));
      }
    }
  }
}

}  // namespace

cudaError_t upsample_argmax(const UpsampleParams& params, const void* logits, LabelType label_type, void* labels,
                            cudaStream_t stream) {
  const ColumnPlan plan = make_column_plan(params);
  return dispatch_logits(params, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const auto kernel = has_many_rows(params) ? argmax_kernel<T, kManyRows> : argmax_kernel<T, kFewRows>;
    PSPFAST_LAUNCH(kernel, logits_grid(plan.blocks), kColumnThreads, ColumnShared::bytes(plan), stream, params, plan,
                   static_cast<const T*>(logits), label_type, labels);
  });
}

}  // namespace pspfast::cuda
