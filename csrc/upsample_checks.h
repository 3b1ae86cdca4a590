// upsample_cross_entropy, upsample_argmax and upsample_softmax check their tensors here, and derive the kernels'
// parameters from them.
#pragma once

#include "checks.h"
#include "upsample.h"

namespace pspfast {

inline UpsampleParams make_upsample_params(const char* op, const Tensor& logits, int64_t height, int64_t width,
                                           bool align_corners) {
  const DType dtype = check_map(op, "logits", logits);
  PSPFAST_CHECK(logits.size(1) >= 1, op, ": logits: expected K of at least 1, got 0");
  check_sizes(op, "size", height, width);
  check_taps(op, height, logits.size(2), width, logits.size(3));
  return {logits.size(0), logits.size(1), logits.size(2),           logits.size(3), height,
          width,          align_corners,  is_channels_last(logits), dtype};
}

inline LabelType check_label_type(const char* op, ScalarType dtype, int64_t classes) {
  switch (dtype) {
    case ScalarType::Byte:
      PSPFAST_CHECK(classes <= 256, op, ": dtype: expected int32 or int64 for ", classes, " classes, got uint8");
      return LabelType::kUInt8;
    case ScalarType::Int: return LabelType::kInt32;
    case ScalarType::Long: return LabelType::kInt64;
    default: PSPFAST_CHECK(false, op, ": dtype: expected uint8, int32 or int64, got ", dtype);
  }
}

// The smallest that holds all classes.
inline ScalarType default_label_type(int64_t classes) { return classes <= 256 ? ScalarType::Byte : ScalarType::Int; }

}  // namespace pspfast
