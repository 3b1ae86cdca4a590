#include "pyramid_upsample.h"

#include <ATen/ops/empty.h>

#include "checks.h"
#include "pyramid_upsample_call.h"

#ifdef PSPFAST_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace pspfast {

at::Tensor empty_values(const PyramidUpsampleParams& p, const at::TensorOptions& options) {
  return at::empty({p.batch, p.bin_count, p.kernel_size, p.kernel_size, p.channels}, options.dtype(sum_type(p.dtype)));
}

void call_upsample(const PyramidUpsampleParams& params, const PyramidUpsampleEpilogue& epilogue,
                   const at::Tensor& values, at::Tensor& map) {
#ifdef PSPFAST_WITH_CUDA
  if (map.is_cuda()) {
    const c10::cuda::CUDAGuard guard(map.device());
    C10_CUDA_CHECK(cuda::pyramid_upsample(params, epilogue, values.const_data_ptr(), map.mutable_data_ptr(),
                                          c10::cuda::getCurrentCUDAStream()));
    return;
  }
#endif
  cpu::pyramid_upsample(params, epilogue, values.const_data_ptr(), map.mutable_data_ptr());
}

void call_upsample_backward(const PyramidUpsampleParams& params, const at::Tensor& grad_map, at::Tensor& grad_values) {
#ifdef PSPFAST_WITH_CUDA
  if (grad_map.is_cuda()) {
    const c10::cuda::CUDAGuard guard(grad_map.device());
    C10_CUDA_CHECK(cuda::pyramid_upsample_backward(params, grad_map.const_data_ptr(), grad_values.mutable_data_ptr(),
                                                   c10::cuda::getCurrentCUDAStream()));
    return;
  }
#endif
  cpu::pyramid_upsample_backward(params, grad_map.const_data_ptr(), grad_values.mutable_data_ptr());
}

}  // namespace pspfast
