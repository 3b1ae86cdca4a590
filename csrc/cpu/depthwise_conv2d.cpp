// depthwise_conv2d on the CPU: how the rows are cut for threads. The loops are in depthwise_conv2d.inl.
#include "../depthwise_conv2d.h"

#include <vector>

#include "dispatch_dtype.h"
#include "parallel.h"
#include "scratch.h"

#define PSPFAST_KERNELS "depthwise_conv2d.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;

template <class T>
using Acc = baseline::Acc<T>;

// Taps lie d rows apart: rows of one phase, which share rows of x, follow each other.
std::vector<int64_t> rows_by_phase(int64_t height, int64_t dilation) {
  std::vector<int64_t> rows;
  for (int64_t phase = 0; phase < std::min(dilation, height); ++phase) {
    for (int64_t row = phase; row < height; row += dilation) rows.push_back(row);
  }
  return rows;
}

// The bias, or zeros, and the filters with their channels last, [1 + k * k, padded].
template <class T>
Scratch<Acc<T>> constants_of(const DepthwiseConv2dParams& p, const T* weight, const T* bias, int64_t padded) {
  const int64_t taps = p.kernel_size * p.kernel_size;
  auto constants = zeros<Acc<T>>((1 + taps) * padded);
  for (int64_t c = 0; c < p.channels; ++c) {
    if (bias) constants[c] = bias[c];
    for (int64_t tap = 0; tap < taps; ++tap) constants[(1 + tap) * padded + c] = weight[c * taps + tap];
  }
  return constants;
}

template <class T>
void convolve(const DepthwiseConv2dParams& p, const T* x, const T* weight, const T* bias, T* out) {
  // The constants of so many channels stay in the L1 cache.
  constexpr int64_t kChannels = 256;
  const int64_t padded = round_up(p.channels, kLanes), row_size = p.width * p.channels;
  const auto constants = constants_of(p, weight, bias, padded);
  const std::vector<int64_t> rows = rows_by_phase(p.height, p.dilation);
  parallel_for(p.batch * p.height, [&](int64_t task) {
    const int64_t n = task / p.height, row = rows[task % p.height];
    const T* image = x + n * p.height * row_size;
    for (int64_t c = 0; c < p.channels; c += kChannels) {
      PSPFAST_CALL(convolve_row, p, image, constants.get(), padded, row, c, std::min(c + kChannels, p.channels),
                   out + (n * p.height + row) * row_size);
    }
  });
}

}  // namespace

void depthwise_conv2d(const DepthwiseConv2dParams& params, const void* x, const void* weight, const void* bias,
                      void* out) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    convolve(params, static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(bias),
             static_cast<T*>(out));
  });
}

}  // namespace pspfast::cpu
