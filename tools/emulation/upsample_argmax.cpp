// The CUDA launcher of upsample_argmax behind a C interface, on the emulation.
#include "../../csrc/cuda/upsample_argmax.cu"
#include "upsample_problem.h"

extern "C" int upsample_argmax(const Problem* problem, const void* logits, int label_type, void* labels) {
  return pspfast::cuda::upsample_argmax(make_params(*problem), logits, static_cast<pspfast::LabelType>(label_type),
                                        labels, nullptr);
}
