// upsample_argmax: what the CPU and CUDA kernels are given. No torch header.
#pragma once

#include "upsample.h"

namespace pspfast {

namespace cpu {
// The class of every pixel as torch.argmax gives it: the first that is NaN, else the first that has the largest logit.
// A pixel is NaN where a logit that it reads is; infinities make none.
void upsample_argmax(const UpsampleParams& params, const void* logits, LabelType label_type,
                     void* labels /* [N, H, W] */);
}  // namespace cpu

#ifdef PSPFAST_WITH_CUDA
// As on the CPU; enqueues on `stream` and returns the launch's error. float64 is not served.
namespace cuda {
cudaError_t upsample_argmax(const UpsampleParams& params, const void* logits, LabelType label_type, void* labels,
                            cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace pspfast
