// Winograd's convolution, F(4x4, 3x3) (arXiv 1509.09308): what the CPU kernels of dilated_conv2d are given. No torch
// header.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"

namespace pspfast {

// A 3x3 convolution of stride 1 whose padding is its dilation. Maps are channels_last, [N, H, W, C] in memory.
struct WinogradParams {
  int64_t batch, height, width, in_channels, out_channels, dilation;
  DType dtype;  // of maps, weight and bias; not float64

  int64_t tile_rows() const { return tile_count(height, dilation); }
  int64_t tile_cols() const { return tile_count(width, dilation); }
  int64_t tiles() const { return batch * tile_rows() * tile_cols(); }
};

// What is done with a convolution's result before it is stored. Pointers may be null.
struct WinogradEpilogue {
  const void* bias;      // [O]
  const void* residual;  // a map as the one written, added
  bool relu;
};

// A tile has 6x6 inputs and 4x4 outputs; a transformed one 36 values, its positions.
constexpr int64_t kTileInputs = 6, kTilePositions = kTileInputs * kTileInputs;
// Channels that lie together in transformed tensors, a vector.
constexpr int64_t kChannelBlock = 16;

constexpr int64_t channel_blocks(int64_t channels) { return ceil_div(channels, kChannelBlock); }

// Elements between two positions of a transformed weight. A position is [O / 16, C, 16] with C and O rounded up; the 16
// elements behind it are not used: without them all positions would meet in one set of the cache.
constexpr int64_t winograd_weight_stride(int64_t in_channels, int64_t out_channels) {
  return (channel_blocks(out_channels) * channel_blocks(in_channels) * kChannelBlock + 1) * kChannelBlock;
}

// The weight w[o, c, ky, kx] = data[o * out_stride + c * in_stride + (3 ky + kx) * tap_stride] of the convolution; or,
// transposed, w[c, o, 2 - ky, 2 - kx], which makes it the gradient of the input of a convolution from O to C channels.
struct WinogradWeight {
  const void* data;
  int64_t out_stride, in_stride, tap_stride;
  bool transposed;
  // What winograd_weight made of it, or null. If it is there, the other members are not used.
  const float* transformed;
};

namespace cpu {
// out = relu(out + residual), for a convolution by the library. `residual` may be null.
void add_relu(DType dtype, int64_t count, const void* residual, bool relu, void* out);
// `transformed` is [36, winograd_weight_stride].
void winograd_weight(const WinogradParams& params, const WinogradWeight& weight, float* transformed);
void winograd_conv2d(const WinogradParams& params, const void* x, const WinogradWeight& weight,
                     const WinogradEpilogue& epilogue, void* out);
// [O, C, 3, 3] in float whatever the maps are, contiguous or [O, 3, 3, C] in memory.
void winograd_weight_gradient(const WinogradParams& params, const void* x, const void* grad, bool channels_last,
                              float* grad_weight);
}  // namespace cpu

}  // namespace pspfast
