// Bilinear upsampling of all levels of a pyramid into a map, and its transposition: what the CPU and CUDA kernels of
// pyramid_concat and pyramid_conv2d are given. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"
#include "upsample_maps.h"

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

namespace cpu {
void pyramid_upsample(const PyramidUpsampleParams& params, const MapUpsampleEpilogue& epilogue, const void* values,
                      void* map);
// The transposed map: grad_values[n, (s, ky, kx), c] gathers A A grad_map over the map.
// Needs no `sums`, which has a GPU's room for those of parts of a map.
void pyramid_upsample_backward(const PyramidUpsampleParams& params, const void* grad_map, void* grad_values,
                               float* sums);
inline int64_t pyramid_upsample_sums(const PyramidUpsampleParams&) { return 0; }
}  // namespace cpu

#ifdef PSPFAST_WITH_CUDA
namespace cuda {

inline MapUpsampleParams as_maps(const PyramidUpsampleParams& params) {
  MapUpsampleParams maps{.levels = params.levels,
                         .batch = params.batch,
                         .height = params.height,
                         .width = params.width,
                         .map_channels = params.map_channels,
                         .first_channel = params.first_channel,
                         .channels = params.channels,
                         .sum_levels = params.sum_levels,
                         .kernel_size = params.kernel_size,
                         .align_corners = params.align_corners,
                         .channels_last = params.channels_last,
                         .dtype = params.dtype,
                         .value_dtype = DType::kFloat32};
  std::copy_n(params.bins, params.levels, maps.rows);
  std::copy_n(params.bins, params.levels, maps.cols);
  return maps;
}

template <class Void, class Float>
LevelValues<Void> as_levels(const PyramidUpsampleParams& params, Float* values) {
  LevelValues<Void> levels{};
  const int64_t channels = params.kernel_size * params.kernel_size * params.channels;
  for (int level = 0; level < params.levels; ++level) {
    levels.data[level] = values + params.bin_offset[level] * channels;
    levels.image_stride[level] = params.bin_count * channels;
  }
  return levels;
}

inline cudaError_t pyramid_upsample(const PyramidUpsampleParams& params, const MapUpsampleEpilogue& epilogue,
                                    const void* values, void* map, cudaStream_t stream) {
  const auto levels = as_levels<const void>(params, static_cast<const float*>(values));
  return upsample_maps(as_maps(params), epilogue, levels, map, stream);
}
inline cudaError_t pyramid_upsample_backward(const PyramidUpsampleParams& params, const void* grad_map,
                                             void* grad_values, float* sums, cudaStream_t stream) {
  const auto levels = as_levels<void>(params, static_cast<float*>(grad_values));
  return upsample_maps_backward(as_maps(params), grad_map, levels, sums, stream);
}
inline int64_t pyramid_upsample_sums(const PyramidUpsampleParams& params) {
  return upsample_maps_sums(as_maps(params));
}

}  // namespace cuda
#endif

}  // namespace pspfast
