// Interpolation of maps of any sizes, taps and all, into one map, and its transposition: what the CUDA kernels behind
// pyramid_concat, pyramid_conv2d and upsample_concat_conv2d are given. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"

#ifdef PSPFAST_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace pspfast {

// With A_l[i, u] the interpolation weights of the rows of level l, B_l[j, v] those of its columns, zero where i or j
// lies outside of the map, and k taps an axis, a channel of level l is interpolated to
//
//   up[n, c, i, j] = sum over ky, kx < k, u < rows, v < cols of
//                    A_l[i + ky - k / 2, u] B_l[j + kx - k / 2, v] values_l[n, u, v, ky, kx, c]
//
// A map [N, C, H, W] is dense: contiguous or channels_last, as in pyramid_pool.h.
struct MapUpsampleParams {
  int32_t levels;
  int32_t rows[kMaxLevels], cols[kMaxLevels];  // of each level, at most those of the map
  int64_t batch, height, width;
  int64_t map_channels;   // all channels of the map
  int64_t first_channel;  // the first channel of the map that is interpolated
  int64_t channels;       // channels of the values
  // True: channel c of the map is the sum of all levels' channel c. False: levels follow each other, channel c of level
  // l is channel first_channel + l * channels + c of the map.
  bool sum_levels;
  int32_t kernel_size;  // k: 1 or 3
  bool align_corners, nearest, channels_last;
  DType dtype;        // of the maps
  DType value_dtype;  // float or that of the maps
};

// Values of level l are [N, rows, cols, k, k, channels], images image_stride[l] elements apart.
template <class Void>
struct LevelValues {
  Void* data[kMaxLevels];
  int64_t image_stride[kMaxLevels];
};

// What is done with an interpolated channel. Pointers may be null.
struct MapUpsampleEpilogue {
  const void* base;  // a map as the one written, added: only with sum_levels
  const void* bias;  // [channels] in the maps' dtype, added: only with sum_levels
  bool relu;
  // [N, first_channel, H, W], dense in the map's memory format: copied to the map's first channels.
  const void* copied;
};

#ifdef PSPFAST_WITH_CUDA
// All of them enqueue on `stream` and return the launch's error; float64 is not served.
namespace cuda {
cudaError_t upsample_maps(const MapUpsampleParams& params, const MapUpsampleEpilogue& epilogue,
                          const LevelValues<const void>& values, void* map, cudaStream_t stream);
// The transposed map: grad_values_l[n, u, v, ky, kx, c] gathers A B grad_map over the map. `sums` are as many floats as
// upsample_maps_sums says.
cudaError_t upsample_maps_backward(const MapUpsampleParams& params, const void* grad_map,
                                   const LevelValues<void>& grad_values, float* sums, cudaStream_t stream);
int64_t upsample_maps_sums(const MapUpsampleParams& params);
}  // namespace cuda
#endif

}  // namespace pspfast
