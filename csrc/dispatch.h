// Runs an op's function on the device of its tensors. The function has one name and the same arguments in namespaces
// cpu and cuda, the latter's followed by the stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#ifdef PSPFAST_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace pspfast {

template <class Function, class Launcher, class... Arguments>
void run_on_device_of(const at::Tensor& tensor, Function* function, Launcher* launcher, const Arguments&... arguments) {
  if (!tensor.is_cuda()) {
    return function(arguments...);
  }
  const c10::cuda::CUDAGuard guard(tensor.device());
  C10_CUDA_CHECK(launcher(arguments..., c10::cuda::getCurrentCUDAStream()));
}

}  // namespace pspfast

// Calls cpu::function or, on the tensor's device and its current stream, cuda::function, whose error it throws.
#define PSPFAST_RUN(tensor, function, ...) run_on_device_of(tensor, &cpu::function, &cuda::function, __VA_ARGS__)
// What cpu::function or cuda::function returns, which launches nothing.
#define PSPFAST_ASK(tensor, function, ...) \
  ((tensor).is_cuda() ? cuda::function(__VA_ARGS__) : cpu::function(__VA_ARGS__))
// Followed by { m.impl("op", &function); … }: registers ops for every device that the library is built for.
#define PSPFAST_LIBRARY_IMPL(m)                                      \
  static void implement(torch::Library& m);                          \
  TORCH_LIBRARY_IMPL(pspfast, CPU, library) { implement(library); }  \
  TORCH_LIBRARY_IMPL(pspfast, CUDA, library) { implement(library); } \
  static void implement(torch::Library& m)

#else

#define PSPFAST_RUN(tensor, function, ...) cpu::function(__VA_ARGS__)
#define PSPFAST_ASK(tensor, function, ...) cpu::function(__VA_ARGS__)
#define PSPFAST_LIBRARY_IMPL(m) TORCH_LIBRARY_IMPL(pspfast, CPU, m)

#endif
