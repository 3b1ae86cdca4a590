// Compiles the file that PSPFAST_KERNELS names once per instruction set, each in a namespace of its own, and defines
// PSPFAST_CALL(f, ...) to call f of the best instruction set that the processor has; ATEN_CPU_CAPABILITY lowers it, as
// it does torch's own.
//
// The kernels are written with the vector types of vector.inl, sixteen lanes wide whatever the instruction set; where
// registers are shorter a vector is made of several. Other processors than x86-64 have one instruction set, "baseline".
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>

#include "../geometry.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PSPFAST_BASELINE 0
#define PSPFAST_AVX2 1
#define PSPFAST_AVX512 2

namespace pspfast::cpu::baseline {
#define PSPFAST_ISA PSPFAST_BASELINE
#include "vector.inl"
#include PSPFAST_KERNELS
#undef PSPFAST_ISA
}  // namespace pspfast::cpu::baseline

#if defined(__x86_64__)

#if defined(__clang__)
#define PSPFAST_PRAGMA(x) _Pragma(#x)
#define PSPFAST_TARGET_BEGIN(flags) \
  PSPFAST_PRAGMA(clang attribute push(__attribute__((target(flags))), apply_to = function))
#define PSPFAST_TARGET_END _Pragma("clang attribute pop")
#else
#define PSPFAST_PRAGMA(x) _Pragma(#x)
#define PSPFAST_TARGET_BEGIN(flags) _Pragma("GCC push_options") PSPFAST_PRAGMA(GCC target(flags))
#define PSPFAST_TARGET_END _Pragma("GCC pop_options")
#endif

PSPFAST_TARGET_BEGIN("avx2,fma,f16c")
namespace pspfast::cpu::avx2 {
#define PSPFAST_ISA PSPFAST_AVX2
#include "vector.inl"
#include PSPFAST_KERNELS
#undef PSPFAST_ISA
}  // namespace pspfast::cpu::avx2
PSPFAST_TARGET_END

PSPFAST_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace pspfast::cpu::avx512 {
#define PSPFAST_ISA PSPFAST_AVX512
#include "vector.inl"
#include PSPFAST_KERNELS
#undef PSPFAST_ISA
}  // namespace pspfast::cpu::avx512
PSPFAST_TARGET_END

namespace pspfast::cpu {
inline int isa() {
  static const int isa = [] {
    const char* const environment = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string_view most = environment ? environment : "avx512";
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (most == "default" || !has_avx2) return PSPFAST_BASELINE;
    return most == "avx2" || !has_avx512 ? PSPFAST_AVX2 : PSPFAST_AVX512;
  }();
  return isa;
}
}  // namespace pspfast::cpu

#define PSPFAST_CALL(f, ...)                                        \
  (::pspfast::cpu::isa() == PSPFAST_AVX512 ? avx512::f(__VA_ARGS__) \
   : ::pspfast::cpu::isa() == PSPFAST_AVX2 ? avx2::f(__VA_ARGS__)   \
                                           : baseline::f(__VA_ARGS__))
#else
#define PSPFAST_CALL(f, ...) baseline::f(__VA_ARGS__)
#endif
