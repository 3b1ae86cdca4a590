// pyramid_upsample on tensors, for the ops that use it: the choice of the CPU or CUDA kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include "pyramid_upsample.h"

namespace pspfast {

// [N, S, k, k, channels] in the type of sums, on the device of `options`.
at::Tensor empty_values(const PyramidUpsampleParams& params, const at::TensorOptions& options);

void call_upsample(const PyramidUpsampleParams& params, const PyramidUpsampleEpilogue& epilogue,
                   const at::Tensor& values, at::Tensor& map);
void call_upsample_backward(const PyramidUpsampleParams& params, const at::Tensor& grad_map, at::Tensor& grad_values);

}  // namespace pspfast
