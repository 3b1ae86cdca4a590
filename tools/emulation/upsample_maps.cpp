// The CUDA launchers of upsample_maps, and of the pyramids that it upsamples, behind a C interface, on the emulation.
#include "../../csrc/cuda/upsample_maps.cu"

#include "../../csrc/pyramid_upsample.h"

struct PyramidProblem {
  int64_t batch, height, width, map_channels, first_channel, channels, kernel_size, dtype;
  int64_t sum_levels, align_corners, channels_last, relu;
  int64_t levels, bins[pspfast::kMaxLevels];
};

inline pspfast::PyramidUpsampleParams make_params(const PyramidProblem& problem) {
  return {pspfast::make_pyramid_levels(problem.bins, static_cast<int>(problem.levels)),
          problem.batch,
          problem.height,
          problem.width,
          problem.map_channels,
          problem.first_channel,
          problem.channels,
          problem.sum_levels != 0,
          static_cast<int32_t>(problem.kernel_size),
          problem.align_corners != 0,
          problem.channels_last != 0,
          static_cast<pspfast::DType>(problem.dtype)};
}

struct MapProblem {
  int64_t batch, height, width, channels, kernel_size, dtype, value_dtype;
  int64_t align_corners, nearest, channels_last, relu;
  int64_t levels, rows[pspfast::kMaxLevels], cols[pspfast::kMaxLevels];
};

inline pspfast::MapUpsampleParams make_params(const MapProblem& problem) {
  pspfast::MapUpsampleParams params{.levels = static_cast<int32_t>(problem.levels),
                                    .batch = problem.batch,
                                    .height = problem.height,
                                    .width = problem.width,
                                    .map_channels = problem.channels,
                                    .channels = problem.channels,
                                    .sum_levels = true,
                                    .kernel_size = static_cast<int32_t>(problem.kernel_size),
                                    .align_corners = problem.align_corners != 0,
                                    .nearest = problem.nearest != 0,
                                    .channels_last = problem.channels_last != 0,
                                    .dtype = static_cast<pspfast::DType>(problem.dtype),
                                    .value_dtype = static_cast<pspfast::DType>(problem.value_dtype)};
  std::copy_n(problem.rows, problem.levels, params.rows);
  std::copy_n(problem.cols, problem.levels, params.cols);
  return params;
}

template <class Void>
pspfast::LevelValues<Void> make_values(const MapProblem& problem, Void* const* data) {
  pspfast::LevelValues<Void> values{};
  for (int level = 0; level < problem.levels; ++level) {
    values.data[level] = data[level];
    values.image_stride[level] =
        problem.rows[level] * problem.cols[level] * problem.kernel_size * problem.kernel_size * problem.channels;
  }
  return values;
}

extern "C" {

int upsample_maps(const MapProblem* problem, const void* base, const void* bias, const void* const* values, void* map) {
  return pspfast::cuda::upsample_maps(make_params(*problem), {base, bias, problem->relu != 0, nullptr},
                                      make_values(*problem, values), map, nullptr);
}

int upsample_maps_backward(const MapProblem* problem, const void* grad_map, void* const* grad_values) {
  const auto params = make_params(*problem);
  emulation::Sums sums(pspfast::cuda::upsample_maps_sums(params));
  return pspfast::cuda::upsample_maps_backward(params, grad_map, make_values(*problem, grad_values), sums.data(),
                                               nullptr);
}

int pyramid_upsample(const PyramidProblem* problem, const void* base, const void* bias, const void* copied,
                     const void* values, void* map) {
  return pspfast::cuda::pyramid_upsample(make_params(*problem), {base, bias, problem->relu != 0, copied}, values, map,
                                         nullptr);
}

int pyramid_upsample_backward(const PyramidProblem* problem, const void* grad_map, void* grad_values) {
  const auto params = make_params(*problem);
  emulation::Sums sums(pspfast::cuda::pyramid_upsample_sums(params));
  return pspfast::cuda::pyramid_upsample_backward(params, grad_map, grad_values, sums.data(), nullptr);
}
}
