// pyramid_upsample on tensors: its host side, for the ops that use it.
#pragma once

#include <ATen/core/Tensor.h>

#include "pyramid_upsample.h"

namespace pspfast {

// [N, S, k, k, channels] in the type of sums, on the device of `options`.
at::Tensor empty_values(const PyramidUpsampleParams& params, const at::TensorOptions& options);

void pyramid_upsample(const PyramidUpsampleParams& params, const PyramidUpsampleEpilogue& epilogue,
                      const at::Tensor& values, at::Tensor& map);
void pyramid_upsample_backward(const PyramidUpsampleParams& params, const at::Tensor& grad_map,
                               at::Tensor& grad_values);

}  // namespace pspfast
