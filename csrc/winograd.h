// Winograd's convolution, F(4x4, 3x3) (arXiv 1509.09308): what the CPU kernels of dilated_conv2d are given. No torch
// header.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"

namespace pspfast {

// A tile has 6x6 inputs and 4x4 outputs; a transformed one 36 values, its positions.
constexpr int64_t kTileInputs = 6, kTilePositions = kTileInputs * kTileInputs;

// A 3x3 convolution of stride 1 whose padding is its dilation. Maps are channels_last, [N, H, W, C] in memory.
struct WinogradParams {
  int64_t batch, height, width, in_channels, out_channels, dilation;
  DType dtype;  // of maps, weight and bias; not float64

  int64_t tile_rows() const { return tile_count(height, dilation); }
  int64_t tile_cols() const { return tile_count(width, dilation); }
  int64_t tiles() const { return batch * tile_rows() * tile_cols(); }
};

// Measured with 2 cores (AVX-512) against oneDNN 3 and its layout of choice, forward and both gradients: with 16
// channels on either side Winograd's algorithm is 1.7 to 2.6 times as fast, with 8 slower. Where few tiles share the
// cost of transforming the weight, or tiles reach far over the borders of a small map's phases, it is slower too: at
// 256 channels 0.6 times with 4 tiles, and 0.9 times where it saves a factor 2.25 of the multiplications.
inline bool winograd_is_faster(const WinogradParams& p) {
  constexpr int64_t kFewestChannels = 16, kFewestTiles = 16;
  const int64_t multiplications = kTilePositions * p.tiles(), direct = 9 * p.batch * p.height * p.width;
  return p.dtype != DType::kFloat64 && std::min(p.in_channels, p.out_channels) >= kFewestChannels &&
         p.tiles() >= kFewestTiles && 2 * direct >= 5 * multiplications;
}

// What is done with a convolution's result before it is stored. Pointers may be null.
struct WinogradEpilogue {
  const void* bias;      // [O]
  const void* residual;  // a map as the one written, added
  bool relu;
};

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
// [O, C, 3, 3] in float whatever the maps are, contiguous or [O, 3, 3, C] in memory, where it is a part of a weight of
// weight_channels input channels.
void winograd_weight_gradient(const WinogradParams& params, const void* x, const void* grad, bool channels_last,
                              int64_t weight_channels, float* grad_weight);
}  // namespace cpu

}  // namespace pspfast
