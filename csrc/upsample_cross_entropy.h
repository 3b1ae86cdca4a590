// upsample_cross_entropy: what the CPU and CUDA kernels are given. No torch header.
//
// With v[k] the logits interpolated to a pixel, t its target, u the class weights (1 where there are none), U their sum
// and s the label smoothing, the loss of a pixel is
//
//   (1 - s) u[t] (lse - v[t]) + s / K (lse U - sum over k of u[k] v[k]),   lse = log sum over k of exp v[k]
//
// and the loss the sum over all pixels but ignored ones, divided by the sum of u[t] over the same; 0 where that is 0.
#pragma once

#include "upsample.h"

namespace pspfast {

struct UpsampleLossParams : UpsampleParams {
  int64_t ignore_index;
  double label_smoothing;
};

namespace cpu {
// The number of partial sums that upsample_cross_entropy writes, which does not depend on the number of threads.
int64_t upsample_cross_entropy_partials(const UpsampleLossParams& params);
// `weight` may be null, and so may `labels`, which become those of upsample_argmax. Targets that are neither a class
// nor ignore_index count as ignored, and as invalid in the sums.
void upsample_cross_entropy(const UpsampleLossParams& params, const void* logits, const int64_t* target /* [N, H, W] */,
                            const void* weight /* [K], float or double as lse */,
                            void* lse /* [N, H, W], float; double for double logits */, LabelType label_type,
                            void* labels /* [N, H, W] */,
                            double* sums /* [partials, 3]: losses, weights, invalid targets */);
// Of all sums: the loss, in the type of lse, the sum of weights, likewise, and whether no target is invalid.
void upsample_cross_entropy_mean(const UpsampleLossParams& params, int64_t partials, const double* sums, void* loss,
                                 void* weight_sum, bool* valid);
// Bytes of memory that the backward works in: none on the CPU.
int64_t upsample_cross_entropy_workspace(const UpsampleLossParams& params);
// grad_logits = scale * the gradient of the sum of losses.
void upsample_cross_entropy_backward(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                                     const void* weight, const void* lse, const void* scale /* one number, as lse */,
                                     void* grad_logits /* as logits */, void* workspace);
}  // namespace cpu

#ifdef PSPFAST_WITH_CUDA
// As on the CPU, in float, with all pointers on the device; all enqueue on `stream` and return the launch's error, and
// float64 is not served.
namespace cuda {
int64_t upsample_cross_entropy_partials(const UpsampleLossParams& params);
cudaError_t upsample_cross_entropy(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                                   const void* weight, void* lse, LabelType label_type, void* labels, double* sums,
                                   cudaStream_t stream);
cudaError_t upsample_cross_entropy_mean(const UpsampleLossParams& params, int64_t partials, const double* sums,
                                        void* loss, void* weight_sum, bool* valid, cudaStream_t stream);
int64_t upsample_cross_entropy_workspace(const UpsampleLossParams& params);
cudaError_t upsample_cross_entropy_backward(const UpsampleLossParams& params, const void* logits, const int64_t* target,
                                            const void* weight, const void* lse, const void* scale, void* grad_logits,
                                            void* workspace, cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace pspfast
