// upsample_argmax: what the CPU and CUDA kernels are given. No torch header.
#pragma once

#include "upsample.h"

namespace pspfast {

namespace cpu {
// The class of the largest logit of every pixel, the first of equal ones; the first that is NaN, if one is.
void upsample_argmax(const UpsampleParams& params, const void* logits, LabelType label_type,
                     void* labels /* [N, H, W] */);
}  // namespace cpu

#ifdef PSPFAST_WITH_CUDA
// As on the CPU, in float; it enqueues on `stream` and returns the launch's error, and float64 is not served.
namespace cuda {
cudaError_t upsample_argmax(const UpsampleParams& params, const void* logits, LabelType label_type, void* labels,
                            cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace pspfast
