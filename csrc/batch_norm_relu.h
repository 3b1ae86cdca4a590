// batch_norm_relu: what the CPU kernels are given. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace pspfast {

// Maps are channels_last, so a matrix [pixels, channels] of `dtype`. Everything else is [channels], in float, for
// float64 maps in double, but for `statistics` [2 channels + 1]: the mean of each channel, its biased variance, and of
// how many values they are.
struct BatchNormReluParams {
  int64_t pixels, channels;
  DType dtype;
  bool relu;
  double eps;
};

// out = relu((x - mean) * weight / sqrt(var + eps) + bias + residual)
struct BatchNormReluInputs {
  const void* x;
  const void* residual;  // or null
  const void* statistics;
  const void* weight;
  const void* bias;
};

// Statistics that move towards those of a batch; null are those that are not there.
struct RunningStatistics {
  void* mean;
  void* var;         // unbiased
  int64_t* batches;  // their number
  double momentum;   // the share of the batch
};

namespace cpu {
// Those of all pixels.
void batch_norm_statistics(const BatchNormReluParams& params, const void* x, void* statistics);
// Those of all values together, of `parts` [parts, 2 channels + 1], of which any may have no values.
void merge_batch_norm_statistics(const BatchNormReluParams& params, int64_t count, const void* parts, void* statistics);
// Nothing moves towards the variance of less than two values.
void move_running_statistics(const BatchNormReluParams& params, const void* statistics,
                             const RunningStatistics& running);
void batch_norm_relu(const BatchNormReluParams& params, const BatchNormReluInputs& in, void* out);
// sums [2, channels]: over these pixels, of g, the gradient behind the ReLU, and of g * (x - mean) / sqrt(var + eps):
// the gradients of bias and weight. g is written to grad_residual, which is null without a residual.
void batch_norm_relu_grad_sums(const BatchNormReluParams& params, const BatchNormReluInputs& in, const void* grad,
                               void* grad_residual, void* sums);
// The gradient of x, of sums over all pixels that the statistics are of. With a residual, grad is g.
void batch_norm_relu_grad_input(const BatchNormReluParams& params, const BatchNormReluInputs& in, const void* grad,
                                const void* sums, void* grad_x);
}  // namespace cpu

}  // namespace pspfast
