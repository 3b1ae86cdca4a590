// The library pspfast and the module pspfast._C. Every op registers itself in <op>.cpp.
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

TORCH_LIBRARY(pspfast, m) { m.set_python_module("pspfast.ops"); }

namespace {

#define PSPFAST_STRING_(x) #x
#define PSPFAST_STRING(x) PSPFAST_STRING_(x)

#if defined(__clang__)
constexpr auto kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr auto kCompiler = "gcc " __VERSION__;
#else
constexpr auto kCompiler = "unknown";
#endif

// The instruction sets that cpu/for_each_isa.h compiles.
#if defined(__x86_64__)
constexpr auto kIsas = "baseline avx2 avx512";
#else
constexpr auto kIsas = "baseline";
#endif

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = kCompiler;
  info["isas"] = kIsas;
#ifdef PSPFAST_WITH_CUDA
  info["cuda"] = PSPFAST_STRING(PSPFAST_CUDA_VERSION);
  info["cuda_archs"] = PSPFAST_STRING(PSPFAST_CUDA_ARCHS);
#else
  info["cuda"] = pybind11::none();
  info["cuda_archs"] = pybind11::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of pspfast, registered as torch.ops.pspfast.*";
  m.def("build_info", &build_info, "What this library was built with and for.");
}
