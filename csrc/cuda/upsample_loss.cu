// upsample_loss on CUDA: neither direction writes logits of the image's resolution. Every sum belongs to a fixed thread
// and has a fixed order: no atomics, bit-reproducible.
#include "upsample_loss_backward.h"
#include "upsample_loss_forward.h"

namespace pspfast::cuda {
namespace {

// The last step of the backward: each row's own sums, and those of the row of cells above it.
template <typename T>
__global__ void __launch_bounds__(kGradThreads)
    add_rows_kernel(const __grid_constant__ UpsampleLossParams params, const float* __restrict__ partial,
                    const float* __restrict__ scale, T* __restrict__ grad_logits) {
  const int64_t row_size = params.channels_last ? params.cols * params.classes : params.cols;
  const int64_t size = params.batch * params.classes * params.rows * params.cols;
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.x} * kGradThreads + threadIdx.x; i < size; i += int64_t{gridDim.x} * kGradThreads) {
    const float from_above = i < row_size ? 0.f : partial[size + i - row_size];
    grad_logits[i] = from_float<T>(*scale * (partial[i] + from_above));
  }
}

}  // namespace

int64_t upsample_loss_parts(const UpsampleLossParams& params) { return make_column_plan(params).blocks; }

cudaError_t upsample_loss(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                          const float* weight, float* lse, LabelType label_type, void* labels, double* sums,
                          cudaStream_t stream) {
  const ColumnPlan plan = make_column_plan(params);
  return dispatch_logits(params, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const bool many = has_many_rows(params);
    const auto kernel = params.label_smoothing > 0
                            ? (many ? loss_fwd_kernel<T, kManyRows, true> : loss_fwd_kernel<T, kFewRows, true>)
                            : (many ? loss_fwd_kernel<T, kManyRows, false> : loss_fwd_kernel<T, kFewRows, false>);
    PSPFAST_LAUNCH(kernel, logits_grid(plan.blocks), kColumnThreads, ColumnShared::bytes(plan), stream, params, plan,
                   static_cast<const T*>(logits), target, weight, lse, label_type, labels, sums);
  });
}

// Two sums for every logit.
int64_t upsample_loss_workspace(const UpsampleLossParams& params) {
  return 2 * params.batch * params.classes * params.rows * params.cols * sizeof(float);
}

cudaError_t upsample_loss_backward(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                                   const float* weight, const float* lse, const float* scale, void* grad_logits,
                                   void* workspace, cudaStream_t stream) {
  const GradPlan plan = make_grad_plan(params);
  auto* const partial = static_cast<float*>(workspace);
  const int64_t size = params.batch * params.classes * params.rows * params.cols;
  return dispatch_logits(params, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const auto kernel = params.label_smoothing > 0 ? loss_bwd_kernel<T, true> : loss_bwd_kernel<T, false>;
    PSPFAST_LAUNCH(kernel, logits_grid(plan.blocks), kGradThreads, sizeof(GradShared), stream, params, plan,
                   static_cast<const T*>(logits), target, weight, lse, partial);
    PSPFAST_LAUNCH(add_rows_kernel<T>, logits_grid(parts_of(size, kGradThreads)), kGradThreads, 0, stream, params,
                   partial, scale, static_cast<T*>(grad_logits));
  });
}

}  // namespace pspfast::cuda
