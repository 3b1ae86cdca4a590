// A convolution over maps of several sizes, interpolated to one size and concatenated: what the CPU kernels of
// upsample_concat_conv2d are given. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"

namespace pspfast {

// With A[i, u] the weights that interpolate `rows` sources to `height` positions, zero where i lies outside the output,
// r = k / 2, and B[j, v] the same for columns, a map m with its share W of the weight adds
//
//   out[n, o, i, j] += sum over ky, kx < k, u, v of A[i + ky - r, u] B[j + kx - r, v] (W[o, :, ky, kx] . m[n, :, u, v])
//
// The products in brackets, the mixed map, have the map's own resolution. Maps are channels_last, [N, H, W, C] in
// memory.
struct UpsampleConcatConv2dParams {
  int64_t batch, height, width;  // of the output
  int64_t channels;              // of all maps, the weight's input channels
  int64_t out_channels;
  int32_t kernel_size;  // k: 1 or 3
  bool align_corners, nearest;
  bool weight_channels_last;  // [O, k, k, channels] in memory, else [O, channels, k, k]
  DType dtype;                // of maps, weight and bias
};

// One of the maps, no larger than the output along either axis. Its channels are the weight's from first_channel on.
struct SourceMap {
  int64_t channels, first_channel, rows, cols;
  const void* data;  // [N, rows, cols, channels]
};

namespace cpu {
// bias is [O] or null.
void upsample_concat_conv2d(const UpsampleConcatConv2dParams& params, const SourceMap* maps, int64_t count,
                            const void* weight, const void* bias, bool relu, void* out);
// The gradient of a map, whose data are not looked at.
void upsample_concat_conv2d_grad_map(const UpsampleConcatConv2dParams& params, const SourceMap& map, const void* grad,
                                     const void* weight, void* grad_map);
// The gradient of the whole weight, in the type of sums: float, double for double.
void upsample_concat_conv2d_grad_weight(const UpsampleConcatConv2dParams& params, const SourceMap* maps, int64_t count,
                                        const void* grad, void* grad_weight);
}  // namespace cpu

}  // namespace pspfast
