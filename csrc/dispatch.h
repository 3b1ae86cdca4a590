// The choice between an op's launchers for the CPU and for CUDA, and the registration of what makes it.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <type_traits>

#ifdef PSPFAST_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace pspfast {

// A function of namespace cuda where the library has CUDA code, else a null pointer.
#ifdef PSPFAST_WITH_CUDA
#define PSPFAST_CUDA(function) (&cuda::function)
#else
#define PSPFAST_CUDA(function) nullptr
#endif

// The one of two functions that is for the tensor's device.
template <class Function>
Function* for_device(const at::Tensor& tensor, Function* cpu, [[maybe_unused]] std::type_identity_t<Function>* cuda) {
#ifdef PSPFAST_WITH_CUDA
  if (tensor.is_cuda()) return cuda;
#endif
  return cpu;
}

// Calls the launcher for the tensor's device. The one for CUDA takes a stream besides, the current one of that device,
// and returns an error, which is raised.
template <class Cpu, class Cuda, class... Arguments>
void launch(const at::Tensor& tensor, Cpu* cpu, [[maybe_unused]] Cuda cuda, const Arguments&... arguments) {
#ifdef PSPFAST_WITH_CUDA
  if (tensor.is_cuda()) {
    const c10::cuda::CUDAGuard guard(tensor.device());
    C10_CUDA_CHECK(cuda(arguments..., c10::cuda::getCurrentCUDAStream()));
    return;
  }
#endif
  cpu(arguments...);
}

// Registers what `implement(m)` implements for the CPU, and for CUDA where the library has code for it.
#ifdef PSPFAST_WITH_CUDA
#define PSPFAST_IMPLEMENT(implement)                    \
  TORCH_LIBRARY_IMPL(pspfast, CPU, m) { implement(m); } \
  TORCH_LIBRARY_IMPL(pspfast, CUDA, m) { implement(m); }
#else
#define PSPFAST_IMPLEMENT(implement) \
  TORCH_LIBRARY_IMPL(pspfast, CPU, m) { implement(m); }
#endif

}  // namespace pspfast
