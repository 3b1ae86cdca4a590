// Runs an op's function on the device of its tensors. The function has one name and the same arguments in namespaces
// cpu and cuda, the latter's followed by the stream.
#pragma once

#include "tensor.h"

#ifdef PSPFAST_WITH_CUDA
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace pspfast {

// torch's current stream of a device. The function is looked up where it is loaded already, for the library to load
// with a torch that has no CUDA as well.
inline cudaStream_t current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto get_stream = reinterpret_cast<Function>(
      dlsym(dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD), "aoti_torch_get_current_cuda_stream"));
  void* stream;
  STABLE_TORCH_ERROR_CODE_CHECK(get_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

template <class Launcher, class... Arguments>
void launch_on_device_of(const Tensor& tensor, Launcher* launcher, const Arguments&... arguments) {
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaError_t error = launcher(arguments..., current_stream(device));
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
  }
}

template <class Function, class Launcher, class... Arguments>
void run_on_device_of(const Tensor& tensor, Function* function, Launcher* launcher, const Arguments&... arguments) {
  if (!tensor.is_cuda()) return function(arguments...);
  launch_on_device_of(tensor, launcher, arguments...);
}

template <class Function, class Asked, class... Arguments>
auto ask_on_device_of(const Tensor& tensor, Function* function, Asked* asked, const Arguments&... arguments) {
  if (!tensor.is_cuda()) return function(arguments...);
  const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
  return asked(arguments...);
}

}  // namespace pspfast

// Calls cpu::function or, on the tensor's device and its current stream, cuda::function, whose error it throws.
#define PSPFAST_RUN(tensor, function, ...) run_on_device_of(tensor, &cpu::function, &cuda::function, __VA_ARGS__)
// What cpu::function or cuda::function returns, which launches nothing.
#define PSPFAST_ASK(tensor, function, ...) ask_on_device_of(tensor, &cpu::function, &cuda::function, __VA_ARGS__)
// Followed by { m.impl("op", TORCH_BOX(&function)); … }: registers ops for every device that the library is built for.
#define PSPFAST_LIBRARY_IMPL(m)                                             \
  static void implement(torch::stable::detail::StableLibrary& m);           \
  STABLE_TORCH_LIBRARY_IMPL(pspfast, CPU, library) { implement(library); }  \
  STABLE_TORCH_LIBRARY_IMPL(pspfast, CUDA, library) { implement(library); } \
  static void implement(torch::stable::detail::StableLibrary& m)

#else

#define PSPFAST_RUN(tensor, function, ...) cpu::function(__VA_ARGS__)
#define PSPFAST_ASK(tensor, function, ...) cpu::function(__VA_ARGS__)
#define PSPFAST_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pspfast, CPU, m)

#endif
