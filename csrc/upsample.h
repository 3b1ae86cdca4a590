// Logits that are interpolated bilinearly to pixels on the fly, by the kernels of upsample_cross_entropy,
// upsample_argmax and upsample_softmax. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"

#ifdef PSPFAST_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace pspfast {

// Logits [N, K, rows, cols], dense: contiguous or channels_last, as in pyramid_pool.h; of pixels [N, H, W].
struct UpsampleParams {
  int64_t batch, classes, rows, cols, height, width;
  bool align_corners, channels_last;
  DType dtype;
};

// The element type of labels that a kernel writes.
enum class LabelType : int { kUInt8, kInt32, kInt64 };

}  // namespace pspfast
