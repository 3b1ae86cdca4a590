// Bilinear upsampling of all levels of a pyramid into a map, and its transposition: what the CPU and CUDA kernels of
// pyramid_concat and pyramid_conv2d are given. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"

#ifdef PSPFAST_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace pspfast {

// With A_b[i, u] the interpolation weights of b sources along an axis, zero where i lies outside the map, and k taps an
// axis, a channel of level b is upsampled to
//
//   up[n, c, i, j] = sum over ky, kx < k, u, v < b of
//                    A_b[i + ky - k / 2, u] A_b[j + kx - k / 2, v] values[n, (bin u v of level b, ky, kx), c]
//
// A map [N, C, H, W] is dense: contiguous or channels_last, as in pyramid_pool.h. Values are [N, S, k, k, channels],
// float (double for double maps), channels innermost.
struct PyramidUpsampleParams : PyramidLevels {
  int64_t batch, height, width;
  int64_t map_channels;   // all channels of the map
  int64_t first_channel;  // the first channel of the map that is upsampled
  int64_t channels;       // channels of the values
  // True: channel c of the map is the sum of all levels' channel c. False: levels follow each other, channel c of level
  // l is channel first_channel + l * channels + c of the map.
  bool sum_levels;
  int32_t kernel_size;  // k: 1 or 3
  bool align_corners, channels_last;
  DType dtype;  // of the maps

  // The index of bin (u, v) of a level, tap (ky, kx), in [S, k, k].
  PSPFAST_HOST_DEVICE int64_t value_index(int level, int u, int v, int ky, int kx) const {
    return ((int64_t(bin_offset[level]) + u * bins[level] + v) * kernel_size + ky) * kernel_size + kx;
  }
};

// What is done with an upsampled channel. Pointers may be null.
struct PyramidUpsampleEpilogue {
  const void* base;  // a map as the one written, added: only with sum_levels
  const void* bias;  // [channels] in the maps' dtype, added: only with sum_levels
  bool relu;
  // [N, first_channel, H, W], dense in the map's memory format: copied to the map's first channels.
  const void* copied;
};

namespace cpu {
void pyramid_upsample(const PyramidUpsampleParams& params, const PyramidUpsampleEpilogue& epilogue, const void* values,
                      void* map);
// The transposed map: grad_values[n, (s, ky, kx), c] gathers A A grad_map over the map.
void pyramid_upsample_backward(const PyramidUpsampleParams& params, const void* grad_map, void* grad_values);
}  // namespace cpu

#ifdef PSPFAST_WITH_CUDA
// Both enqueue on `stream` and return the launch's error; float64 is not served.
namespace cuda {
cudaError_t pyramid_upsample(const PyramidUpsampleParams& params, const PyramidUpsampleEpilogue& epilogue,
                             const void* values, void* map, cudaStream_t stream);
cudaError_t pyramid_upsample_backward(const PyramidUpsampleParams& params, const void* grad_map, void* grad_values,
                                      cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace pspfast
