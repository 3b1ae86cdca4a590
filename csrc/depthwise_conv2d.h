// depthwise_conv2d: what the CPU kernel is given. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace pspfast {

// A convolution of each channel with a k x k filter of its own, k odd, stride 1, padded by dilation * (k / 2): the
// result has the size of the map. Maps are channels_last.
struct DepthwiseConv2dParams {
  int64_t batch, channels, height, width, kernel_size, dilation;
  DType dtype;  // of everything
  bool relu;

  // How far the outermost taps lie from the middle.
  int64_t reach() const { return dilation * (kernel_size / 2); }
};

namespace cpu {
// `weight` is [C, k, k], `bias` [C] or null.
void depthwise_conv2d(const DepthwiseConv2dParams& params, const void* x, const void* weight, const void* bias,
                      void* out);
}  // namespace cpu

}  // namespace pspfast
