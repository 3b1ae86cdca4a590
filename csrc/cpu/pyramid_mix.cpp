// pyramid_mix on the CPU: how the work is cut for threads. The loops are in pyramid_mix.inl.
#include "../pyramid_mix.h"

#include "dispatch_dtype.h"
#include "huge_pages.h"
#include "parallel.h"
#include "scratch.h"

#define PSPFAST_KERNELS "pyramid_mix.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;
constexpr int64_t kBlock = baseline::kWide * kLanes;

template <class T>
using Acc = baseline::Acc<T>;

int64_t most_bins(const PyramidMixParams& p) {
  int64_t most = 0;
  for (int level = 0; level < p.levels; ++level) most = std::max(most, baseline::bins_of(p, level));
  return most;
}

// Calls f(first in a filter, first in filter_x, count) for every run of memory that a filter and filter_x, its weights
// of the map's channels, have in common.
template <class F>
void for_each_run_of_map(const PyramidMixParams& p, const F& f) {
  if (!p.channels_last) {
    return f(p.first_x * p.taps, 0, p.x_channels * p.taps);
  }
  for (int64_t t = 0; t < p.taps; ++t) {
    f(t * p.channels + p.first_x, t * p.x_channels, p.x_channels);
  }
}

// A copy of the priors in the type of sums, [N, S, stride] with zeros behind R.
template <class T>
Scratch<Acc<T>> padded(const PyramidMixParams& p, const T* priors, int64_t stride) {
  auto to = zeros<Acc<T>>(p.batch * p.bin_count * stride);
  for (int64_t row = 0; row < p.batch * p.bin_count; ++row) {
    std::copy_n(priors + row * p.reduction, p.reduction, &to[row * stride]);
  }
  return to;
}

// A copy of the priors in the type of sums, [stride / 16, N, bins, 16] for each level with zeros behind R.
template <class T>
Scratch<Acc<T>> in_blocks(const PyramidMixParams& p, const T* priors, int64_t stride) {
  auto to = zeros<Acc<T>>(p.batch * p.bin_count * stride);
  for (int level = 0; level < p.levels; ++level) {
    const int64_t bins = baseline::bins_of(p, level);
    for (int64_t q = 0; q < bins; ++q) {
      const T* from = priors + baseline::bin_index(p, level, q) * p.reduction;
      Acc<T>* row = &to[p.batch * p.bin_offset[level] * stride + q * kLanes];
      for (int64_t r = 0; r < p.reduction; ++r) row[r / kLanes * bins * kLanes + r % kLanes] = from[r];
    }
  }
  return to;
}

template <class T, int kTaps>
void mix(const PyramidMixParams& p, const T* priors, const T* weight, Acc<T>* mixed, T* weight_x) {
  const int64_t stride = round_up(p.reduction, kLanes);
  const auto blocks = in_blocks(p, priors, stride);
  parallel_tasks(ceil_div(p.out_channels, kLanes), [&] {
    return [&, transposed = zeros<Acc<T>>(kTaps * baseline::tap_stride(stride)),
            products = scratch<Acc<T>>(kTaps * most_bins(p) * kLanes)](int64_t task) {
      const int64_t first = task * kLanes, count = std::min(kLanes, p.out_channels - first);
      for (int64_t o = first; o < first + count; ++o) {
        const T* filter = weight + o * p.channels * kTaps;
        T* filter_x = weight_x + o * p.x_channels * kTaps;
        for_each_run_of_map(p, [&](int64_t in_filter, int64_t in_filter_x, int64_t size) {
          std::copy_n(filter + in_filter, size, filter_x + in_filter_x);
        });
      }
      PSPFAST_CALL(mix_filters, baseline::Constant<kTaps>{}, p, weight + first * p.channels * kTaps, count,
                   blocks.get(), stride, mixed + first, transposed.get(), products.get());
    };
  });
}

template <class T, int kTaps>
void mix_backward(const PyramidMixParams& p, const Acc<T>* grad_mixed, const T* grad_weight_x, const T* priors,
                  const T* weight, T* grad_priors, T* grad_weight) {
  const int64_t blocks = ceil_div(p.reduction, kBlock);
  const int64_t most = most_bins(p);
  parallel_tasks(p.levels * blocks, [&] {
    return [&, filter_taps = scratch<Acc<T>>(kTaps * kBlock), sums = scratch<Acc<T>>(most * kBlock)](int64_t task) {
      // The last level, which usually has most bins, first.
      const int level = p.levels - 1 - static_cast<int>(task / blocks);
      const int64_t r = task % blocks * kBlock;
      PSPFAST_CALL(mix_grad_priors, baseline::Constant<kTaps>{}, p, weight, grad_mixed, level, r,
                   std::min(kBlock, p.reduction - r), grad_priors, filter_taps.get(), sums.get());
    };
  });
  const int64_t stride = round_up(p.reduction, kBlock);
  const auto rows = padded(p, priors, stride);
  parallel_tasks(p.out_channels, [&] {
    return [&, filter_taps = scratch<Acc<T>>(kTaps * kBlock)](int64_t o) {
      T* filter = grad_weight + o * p.channels * kTaps;
      const T* filter_x = grad_weight_x + o * p.x_channels * kTaps;
      for_each_run_of_map(p, [&](int64_t in_filter, int64_t in_filter_x, int64_t count) {
        std::copy_n(filter_x + in_filter_x, count, filter + in_filter);
      });
      PSPFAST_CALL(mix_grad_filter, baseline::Constant<kTaps>{}, p, grad_mixed + o * p.batch * p.bin_count * kTaps,
                   rows.get(), stride, filter, filter_taps.get());
    };
  });
}

}  // namespace

void pyramid_mix(const PyramidMixParams& params, const void* priors, const void* weight, void* mixed, void* weight_x) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    advise_huge_pages(weight_x, sizeof(T) * params.out_channels * params.x_channels * params.taps);
    (params.taps == 1 ? mix<T, 1> : mix<T, 9>)(params, static_cast<const T*>(priors), static_cast<const T*>(weight),
                                               static_cast<Acc<T>*>(mixed), static_cast<T*>(weight_x));
  });
}

void pyramid_mix_backward(const PyramidMixParams& params, const void* grad_mixed, const void* grad_weight_x,
                          const void* priors, const void* weight, void* grad_priors, void* grad_weight) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    advise_huge_pages(grad_weight, sizeof(T) * params.out_channels * params.channels * params.taps);
    (params.taps == 1 ? mix_backward<T, 1>
                      : mix_backward<T, 9>)(params, static_cast<const Acc<T>*>(grad_mixed),
                                            static_cast<const T*>(grad_weight_x), static_cast<const T*>(priors),
                                            static_cast<const T*>(weight), static_cast<T*>(grad_priors),
                                            static_cast<T*>(grad_weight));
  });
}

}  // namespace pspfast::cpu
