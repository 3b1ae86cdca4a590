// The CUDA launcher of upsample_softmax behind a C interface, on the emulation.
#include "../../csrc/cuda/upsample_softmax.cu"
#include "upsample_problem.h"

struct Output {
  int64_t image_stride, class_stride, row_stride, col_stride, flip, add;
  double weight;
};

extern "C" int upsample_softmax(const Problem* problem, const Output* output, const void* logits,
                                float* probabilities) {
  const pspfast::SoftmaxOutput to{output->image_stride, output->class_stride, output->row_stride, output->col_stride,
                                  output->flip != 0,    output->add != 0,     output->weight};
  return pspfast::cuda::upsample_softmax(make_params(*problem), to, logits, probabilities, nullptr);
}
