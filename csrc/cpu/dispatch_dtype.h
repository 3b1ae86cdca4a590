// Calls a template with the element type that is known at run time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../dtype.h"

namespace pspfast::cpu {

// Calls f with a null pointer of the element type.
template <class F>
void dispatch_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32: return f(static_cast<float*>(nullptr));
    case DType::kFloat16: return f(static_cast<c10::Half*>(nullptr));
    case DType::kBFloat16: return f(static_cast<c10::BFloat16*>(nullptr));
    case DType::kFloat64: return f(static_cast<double*>(nullptr));
  }
}

// The same for kernels that have no float64.
template <class F>
void dispatch_dtype_but_double(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat16: return f(static_cast<c10::Half*>(nullptr));
    case DType::kBFloat16: return f(static_cast<c10::BFloat16*>(nullptr));
    default: return f(static_cast<float*>(nullptr));
  }
}

}  // namespace pspfast::cpu
