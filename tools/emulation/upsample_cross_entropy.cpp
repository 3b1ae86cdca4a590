// The CUDA launchers of upsample_cross_entropy behind a C interface, on the emulation.
#include "../../csrc/cuda/upsample_cross_entropy.cu"

struct Problem {
  int64_t batch, classes, rows, cols, height, width, align_corners, channels_last, dtype;
  int64_t ignore_index;
  double label_smoothing;
};

inline pspfast::UpsampleLossParams make_params(const Problem& problem) {
  return {{problem.batch, problem.classes, problem.rows, problem.cols, problem.height, problem.width,
           problem.align_corners != 0, problem.channels_last != 0, static_cast<pspfast::DType>(problem.dtype)},
          problem.ignore_index,
          problem.label_smoothing};
}

extern "C" {

int64_t upsample_cross_entropy_partials(const Problem* problem) {
  return pspfast::cuda::upsample_cross_entropy_partials(make_params(*problem));
}

int64_t upsample_cross_entropy_workspace(const Problem* problem) {
  return pspfast::cuda::upsample_cross_entropy_workspace(make_params(*problem));
}

int upsample_cross_entropy(const Problem* problem, const void* logits, const int64_t* target, const float* weight,
                           float* lse, int label_type, void* labels, double* sums) {
  return pspfast::cuda::upsample_cross_entropy(make_params(*problem), logits, target, weight, lse,
                                               static_cast<pspfast::LabelType>(label_type), labels, sums, nullptr);
}

int upsample_cross_entropy_mean(const Problem* problem, int64_t partials, const double* sums, float* loss,
                                float* weight_sum, bool* valid) {
  return pspfast::cuda::upsample_cross_entropy_mean(make_params(*problem), partials, sums, loss, weight_sum, valid,
                                                    nullptr);
}

int upsample_cross_entropy_backward(const Problem* problem, const void* logits, const int64_t* target,
                                    const float* weight, const float* lse, const float* scale, void* grad_logits,
                                    void* workspace) {
  return pspfast::cuda::upsample_cross_entropy_backward(make_params(*problem), logits, target, weight, lse, scale,
                                                        grad_logits, workspace, nullptr);
}

int first_position(int source, int size, int sources, bool align_corners) {
  return pspfast::first_position(source, size, sources, align_corners);
}
}
