// pyramid_upsample on tensors, for the ops that use it: allocation, choice of the CPU or CUDA kernel.
#include "pyramid_upsample_tensors.h"

#include <ATen/ops/empty.h>

#include "checks.h"
#include "dispatch.h"

namespace pspfast {

at::Tensor empty_values(const PyramidUpsampleParams& p, const at::TensorOptions& options) {
  return at::empty({p.batch, p.bin_count, p.kernel_size, p.kernel_size, p.channels}, options.dtype(sum_type(p.dtype)));
}

void pyramid_upsample(const PyramidUpsampleParams& params, const PyramidUpsampleEpilogue& epilogue,
                      const at::Tensor& values, at::Tensor& map) {
  launch(map, cpu::pyramid_upsample, PSPFAST_CUDA(pyramid_upsample), params, epilogue, values.const_data_ptr(),
         map.mutable_data_ptr());
}

void pyramid_upsample_backward(const PyramidUpsampleParams& params, const at::Tensor& grad_map,
                               at::Tensor& grad_values) {
  launch(grad_map, cpu::pyramid_upsample_backward, PSPFAST_CUDA(pyramid_upsample_backward), params,
         grad_map.const_data_ptr(), grad_values.mutable_data_ptr());
}

}  // namespace pspfast
