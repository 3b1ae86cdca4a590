// upsample_cross_entropy on CUDA: neither direction writes logits of the image's resolution. Every sum belongs to a
// fixed thread and has a fixed order: no atomics, bit-reproducible.
#include "upsample_cross_entropy_backward.cuh"
#include "upsample_cross_entropy_forward.cuh"

namespace pspfast::cuda {
namespace {

__host__ __device__ int64_t logits_count(const UpsampleLossParams& params) {
  return params.batch * params.classes * params.rows * params.cols;
}

// The number of logits of a row that follow one another in memory; the row below begins behind them.
__host__ __device__ int64_t logits_row(const UpsampleLossParams& params) {
  return params.channels_last ? params.cols * params.classes : params.cols;
}

// The last step of the backward: grad_logits, in memory as the logits, is scale [1] times each row's own sums and those
// of the row of cells above it, which are partial [2, N K rows cols]. A thread takes Size neighbouring logits, one or
// 16 bytes of them.
template <typename T, int Size>
__global__ void __launch_bounds__(kGradThreads)
    add_rows_kernel(const __grid_constant__ UpsampleLossParams params, const float* __restrict__ partial,
                    const float* __restrict__ scale, T* __restrict__ grad_logits) {
  constexpr int kSums = Size == 1 ? 1 : kVectorSize<float>;
  const int64_t row_size = logits_row(params), size = logits_count(params);
#pragma unroll 1
  for (int64_t i = (int64_t{blockIdx.x} * kGradThreads + threadIdx.x) * Size; i < size;
       i += int64_t{gridDim.x} * kGradThreads * Size) {
    Vector<T, Size> grad;
#pragma unroll
    for (int first = 0; first < Size; first += kSums) {
      const auto own = load<kSums>(partial + i + first);
      Vector<float, kSums> from_above = {};
      if (i >= row_size) from_above = load<kSums>(partial + size + i + first - row_size);
#pragma unroll
      for (int j = 0; j < kSums; ++j) grad.data[first + j] = from_float<T>(*scale * (own.data[j] + from_above.data[j]));
    }
    store<true>(grad_logits + i, grad);
  }
}

template <typename T, int Size>
void launch_add_rows(const UpsampleLossParams& params, const float* partial, const float* scale, T* grad_logits,
                     cudaStream_t stream) {
  PSPFAST_LAUNCH((add_rows_kernel<T, Size>), logits_grid(ceil_div(logits_count(params), kGradThreads * Size)),
                 kGradThreads, 0, stream, params, partial, scale, grad_logits);
}

// Sums [partials, 3] become the loss, the sum of weights and whether no target is invalid, in one block.
__global__ void __launch_bounds__(kColumnThreads)
    mean_kernel(const double* __restrict__ sums, int64_t partials, float* __restrict__ loss,
                float* __restrict__ weight_sum, bool* __restrict__ valid) {
  PSPFAST_SHARED(bytes);
  auto* const scratch = reinterpret_cast<double*>(bytes);
  double totals[3] = {};
  for (int64_t i = threadIdx.x; i < partials; i += kColumnThreads) {
    for (int j = 0; j < 3; ++j) totals[j] += sums[i * 3 + j];
  }
  for (double& total : totals) total = block_sum<kColumnWarps>(total, scratch);
  if (threadIdx.x == 0) {
    *loss = static_cast<float>(totals[1] != 0 ? totals[0] / totals[1] : 0);
    *weight_sum = static_cast<float>(totals[1]);
    *valid = totals[2] == 0;
  }
}

}  // namespace

int64_t upsample_cross_entropy_partials(const UpsampleLossParams& params) { return make_column_plan(params).blocks; }

cudaError_t upsample_cross_entropy(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                                   const void* weight, void* lse, LabelType label_type, void* labels, double* sums,
                                   cudaStream_t stream) {
  const ColumnPlan plan = make_column_plan(params);
  return dispatch_logits(params, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const bool many = has_many_rows(params);
    const auto kernel = params.label_smoothing > 0
                            ? (many ? loss_fwd_kernel<T, kManyRows, true> : loss_fwd_kernel<T, kFewRows, true>)
                            : (many ? loss_fwd_kernel<T, kManyRows, false> : loss_fwd_kernel<T, kFewRows, false>);
    PSPFAST_LAUNCH(kernel, logits_grid(plan.blocks), kColumnThreads, ColumnShared::bytes(plan), stream, params, plan,
                   static_cast<const T*>(logits), target, static_cast<const float*>(weight), static_cast<float*>(lse),
                   label_type, labels, sums);
  });
}

cudaError_t upsample_cross_entropy_mean(const UpsampleLossParams&, int64_t partials, const double* sums, void* loss,
                                        void* weight_sum, bool* valid, cudaStream_t stream) {
  PSPFAST_LAUNCH(mean_kernel, 1, kColumnThreads, kColumnWarps * sizeof(double), stream, sums, partials,
                 static_cast<float*>(loss), static_cast<float*>(weight_sum), valid);
  return cudaGetLastError();
}

// The workspace holds two sums for every logit.
int64_t upsample_cross_entropy_workspace(const UpsampleLossParams& params) {
  return 2 * logits_count(params) * sizeof(float);
}

cudaError_t upsample_cross_entropy_backward(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                                            const void* weight, const void* lse, const void* scale, void* grad_logits,
                                            void* workspace, cudaStream_t stream) {
  const GradPlan plan = make_grad_plan(params);
  auto* const partial = static_cast<float*>(workspace);
  return dispatch_logits(params, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const auto kernel = params.label_smoothing > 0 ? loss_bwd_kernel<T, true> : loss_bwd_kernel<T, false>;
    PSPFAST_LAUNCH(kernel, logits_grid(plan.blocks), kGradThreads, sizeof(GradShared), stream, params, plan,
                   static_cast<const T*>(logits), target, static_cast<const float*>(weight),
                   static_cast<const float*>(lse), partial);
    // Then all rows of sums and of gradients begin at multiples of 16 bytes, as the workspace does.
    const bool wide =
        logits_row(params) % kVectorSize<T> == 0 && is_vector_aligned(partial) && is_vector_aligned(grad_logits);
    const auto add_rows = wide ? launch_add_rows<T, kVectorSize<T>> : launch_add_rows<T, 1>;
    add_rows(params, partial, static_cast<const float*>(scale), static_cast<T*>(grad_logits), stream);
  });
}

}  // namespace pspfast::cuda
