// upsample_softmax: what the CPU and CUDA kernels are given. No torch header.
#pragma once

#include "upsample.h"

namespace pspfast {

// Where probabilities [N, K, H, W] go; strides are in elements.
struct SoftmaxOutput {
  int64_t image_stride, class_stride, row_stride, col_stride;
  bool flip;  // column j of the logits' image is column W - 1 - j of the output
  bool add;   // to what is there
  double weight;
};

namespace cpu {
void upsample_softmax(const UpsampleParams& params, const SoftmaxOutput& output, const void* logits,
                      void* probabilities /* float; double for double logits */);
}  // namespace cpu

#ifdef PSPFAST_WITH_CUDA
// As on the CPU, in float; enqueues on `stream` and returns the launch's error. float64 is not served.
namespace cuda {
cudaError_t upsample_softmax(const UpsampleParams& params, const SoftmaxOutput& output, const void* logits,
                             void* probabilities, cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace pspfast
