// The module pspfast._C: what the op library beside it was built with and for. It knows nothing of torch's libraries,
// and so loads whatever their version.
#include <pybind11/pybind11.h>

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
  info["torch"] = PSPFAST_STRING(PSPFAST_TORCH_VERSION);
  info["least_torch"] = PSPFAST_STRING(PSPFAST_LEAST_TORCH);
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
  m.doc() = "What the ops of torch.ops.pspfast were built with and for.";
  m.def("build_info", &build_info, "What the op library was built with and for.");
}
