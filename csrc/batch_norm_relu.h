// batch_norm_relu: what the CPU kernels are given. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace pspfast {

// Maps are channels_last, so a matrix [pixels, channels] of `dtype`. Everything else is [channels], in float, for
// float64 maps in double.
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
  const void* mean;
  const void* var;
  const void* weight;
  const void* bias;
};

struct BatchNormReluGradients {
  void* x;
  void* residual;  // null if there is none
  void* weight;    // sum over pixels of g * (x - mean) / sqrt(var + eps), g the gradient behind the ReLU
  void* bias;      // sum of g
};

namespace cpu {
// Mean and biased variance over all pixels.
void batch_norm_statistics(const BatchNormReluParams& params, const void* x, void* mean, void* var);
void batch_norm_relu(const BatchNormReluParams& params, const BatchNormReluInputs& in, void* out);
void batch_norm_relu_backward(const BatchNormReluParams& params, const BatchNormReluInputs& in, const void* grad,
                              const BatchNormReluGradients& grads);
}  // namespace cpu

}  // namespace pspfast
