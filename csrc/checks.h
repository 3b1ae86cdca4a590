// Checks that ops share. A message says op, argument, expected, got.
#pragma once

#include <ATen/core/Tensor.h>

#include "dtype.h"

namespace pspfast {

// The kernels' name for the tensor's dtype; an error where they have none.
inline DType check_dtype(const char* op, const char* argument, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return DType::kFloat32;
    case at::kHalf: return DType::kFloat16;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kDouble:
      if (tensor.is_cpu()) {
        return DType::kFloat64;
      }
      break;
    default: break;
  }
  TORCH_CHECK_TYPE(false, op, ": ", argument, ": expected float32, float16 or bfloat16",
                   tensor.is_cpu() ? " or float64" : "", ", got ", tensor.scalar_type());
}

// A map whose memory order is channels_last and cannot be read as contiguous.
inline bool is_channels_last(const at::Tensor& map) {
  return map.is_contiguous(at::MemoryFormat::ChannelsLast) && !map.is_contiguous();
}

}  // namespace pspfast
