// The CUDA launchers of pyramid_upsample behind a C interface, on the emulation.
#include <cmath>
#include <vector>

#include "../../csrc/cuda/upsample_maps.cu"
#include "../../csrc/pyramid_upsample.h"

struct Problem {
  int64_t batch, height, width, map_channels, first_channel, channels, kernel_size, dtype;
  int64_t sum_levels, align_corners, channels_last, relu;
  int64_t levels, bins[pspfast::kMaxLevels];
};

inline pspfast::PyramidUpsampleParams make_params(const Problem& problem) {
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

extern "C" {

int pyramid_upsample(const Problem* problem, const void* base, const void* bias, const void* copied, const void* values,
                     void* map) {
  return pspfast::cuda::pyramid_upsample(make_params(*problem), {base, bias, problem->relu != 0, copied}, values, map,
                                         nullptr);
}

int pyramid_upsample_backward(const Problem* problem, const void* grad_map, void* grad_values) {
  const auto params = make_params(*problem);
  std::vector<float> sums(pspfast::cuda::pyramid_upsample_sums(params), NAN);
  return pspfast::cuda::pyramid_upsample_backward(params, grad_map, grad_values, sums.data(), nullptr);
}
}
