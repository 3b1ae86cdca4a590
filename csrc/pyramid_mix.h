// pyramid_mix: what the CPU kernels are given. No torch header.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"

namespace pspfast {

// The weight [O, channels, k, k] of a convolution over the concatenation of a map and the levels of its pyramid. Level
// l has `reduction` channels from first_prior + l * reduction on, the map x_channels from first_x on. Memory is
// contiguous, or channels_last: [O, k, k, channels].
struct PyramidMixParams : PyramidLevels {
  int64_t batch, out_channels, channels, x_channels, first_x, reduction, first_prior;
  int64_t taps;  // k * k: 1 or 9
  bool channels_last;
  DType dtype;
};

namespace cpu {
// mixed[n, s, t, o] = sum over r of weight[o, r of the level of s, t] priors[n, s, r], in float (double for double),
// and weight_x, a copy of the weight of the map's channels.
void pyramid_mix(const PyramidMixParams& params, const void* priors /* [N, S, R] */, const void* weight,
                 void* mixed /* [N, S, k, k, O] */, void* weight_x);
// The gradients of priors, from the gradient of `mixed` with o outermost, and of the whole weight.
void pyramid_mix_backward(const PyramidMixParams& params, const void* grad_mixed /* [O, N, S, k, k] */,
                          const void* grad_weight_x, const void* priors /* [N, S, R] */, const void* weight,
                          void* grad_priors /* [N, S, R] */, void* grad_weight);
}  // namespace cpu

}  // namespace pspfast
