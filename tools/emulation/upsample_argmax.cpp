// The CUDA launchers of upsample_argmax and upsample_softmax behind a C interface, on the emulation.
#include "../../csrc/cuda/upsample_argmax.cu"

struct Problem {
  int64_t batch, classes, rows, cols, height, width, align_corners, channels_last, dtype;
};

struct Output {
  int64_t image_stride, class_stride, row_stride, col_stride, flip, add;
  double weight;
};

inline pspfast::UpsampleParams make_params(const Problem& problem) {
  return {problem.batch,
          problem.classes,
          problem.rows,
          problem.cols,
          problem.height,
          problem.width,
          problem.align_corners != 0,
          problem.channels_last != 0,
          static_cast<pspfast::DType>(problem.dtype)};
}

extern "C" {

int upsample_argmax(const Problem* problem, const void* logits, int label_type, void* labels) {
  return pspfast::cuda::upsample_argmax(make_params(*problem), logits, static_cast<pspfast::LabelType>(label_type),
                                        labels, nullptr);
}

int upsample_softmax(const Problem* problem, const Output* output, const void* logits, float* probabilities) {
  const pspfast::SoftmaxOutput to{output->image_stride, output->class_stride, output->row_stride, output->col_stride,
                                  output->flip != 0,    output->add != 0,     output->weight};
  return pspfast::cuda::upsample_softmax(make_params(*problem), to, logits, probabilities, nullptr);
}
}
