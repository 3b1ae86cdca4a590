// pyramid_upsample on the CPU: tables of taps, and how the work is cut for threads. The loops are in
// pyramid_upsample.inl.
#include "../pyramid_upsample.h"

#include "memory.h"
#include "tasks.h"

namespace pspfast::cpu {
namespace {

template <class A>
struct WeightedTap {
  int32_t low, high;
  A low_weight, high_weight;
};

// The taps of every position of an axis in every level; weights are zero outside the map.
template <class A>
class AxisTaps {
 public:
  AxisTaps(const PyramidUpsampleParams& p, int64_t size)
      : levels_(p.levels), taps_(scratch<WeightedTap<A>>((size + p.kernel_size - 1) * p.levels)) {
    const int64_t pad = p.kernel_size / 2;
    for (int64_t position = -pad; position < size + pad; ++position) {
      for (int level = 0; level < levels_; ++level) {
        auto& weighted = taps_[(position + pad) * levels_ + level];
        if (position < 0 || position >= size) {
          weighted = {};
          continue;
        }
        const auto tap = interpolation_tap<A>(static_cast<int32_t>(position), static_cast<int32_t>(size),
                                              p.bins[level], p.align_corners);
        weighted = {tap.low, tap.high, 1 - tap.weight, tap.weight};
      }
    }
  }

  // The taps of the position that the k-th tap of the convolution at `position` reads.
  const WeightedTap<A>& at(int64_t position, int level, int k) const { return taps_[(position + k) * levels_ + level]; }

 private:
  int levels_;
  std::unique_ptr<WeightedTap<A>[]> taps_;
};

template <class T>
struct Epilogue {
  const T* base;
  const T* bias;
  bool relu;
};

}  // namespace
}  // namespace pspfast::cpu

#define PSPFAST_KERNELS "pyramid_upsample.inl"
#include "for_each_level.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;
constexpr int64_t kVectors = baseline::kVectors;

template <class T>
using Acc = baseline::Acc<T>;

// The levels that a channel of the map is made of.
struct Levels {
  int first, last;
};

Levels levels_of(const PyramidUpsampleParams& p, int64_t level) {
  return p.sum_levels ? Levels{0, p.levels} : Levels{static_cast<int>(level), static_cast<int>(level) + 1};
}

int64_t sources_of(const PyramidUpsampleParams& p, Levels levels) {
  return p.axis_offset[levels.last - 1] + p.bins[levels.last - 1] - p.axis_offset[levels.first];
}

int64_t values_of(const PyramidUpsampleParams& p) { return int64_t(p.bin_count) * p.kernel_size * p.kernel_size; }

// The weights [sources, k, stride] of every column, zero outside the map and up to the stride.
template <class A>
std::unique_ptr<A[]> dense_weights(const PyramidUpsampleParams& p, const AxisTaps<A>& cols, int64_t stride) {
  const int k = p.kernel_size;
  auto weights = std::unique_ptr<A[]>(new A[p.axis_bins * k * stride]());
  for (int level = 0; level < p.levels; ++level) {
    for (int kx = 0; kx < k; ++kx) {
      for (int64_t col = 0; col < p.width; ++col) {
        const auto& tap = cols.at(col, level, kx);
        weights[((p.axis_offset[level] + tap.low) * k + kx) * stride + col] += tap.low_weight;
        weights[((p.axis_offset[level] + tap.high) * k + kx) * stride + col] += tap.high_weight;
      }
    }
  }
  return weights;
}

template <class T>
void upsample_contiguous(const PyramidUpsampleParams& p, const PyramidUpsampleEpilogue& epilogue, const Acc<T>* values,
                         T* map) {
  using A = Acc<T>;
  const AxisTaps<A> rows(p, p.height), cols(p, p.width);
  const int64_t stride = ceil_div(p.width, kLanes) * kLanes, plane = p.height * p.width;
  const auto dense = dense_weights(p, cols, stride);
  parallel_tasks(p.batch * p.map_channels, [&] {
    return [&, combined = scratch<A>(p.axis_bins * p.kernel_size * stride)](int64_t task) {
      const int64_t n = task / p.map_channels, channel = task % p.map_channels - p.first_channel;
      if (channel < 0) {
        const T* from = static_cast<const T*>(epilogue.copied) + (n * p.first_channel + channel + p.first_channel) * plane;
        std::memcpy(map + task * plane, from, plane * sizeof(T));
        return;
      }
      const Levels levels = levels_of(p, channel / p.channels);
      const T* base = static_cast<const T*>(epilogue.base);
      const T* bias = static_cast<const T*>(epilogue.bias);
      PSPFAST_CALL(upsample_plane, p, rows, dense.get(),
                   values + n * values_of(p) * p.channels + channel % p.channels, levels.first, levels.last,
                   Epilogue<T>{base ? base + task * plane : nullptr, bias ? bias + channel : nullptr, epilogue.relu},
                   map + task * plane, combined.get(), stride);
    };
  });
}

template <class T>
void gather_contiguous(const PyramidUpsampleParams& p, const T* map, Acc<T>* grad_values) {
  using A = Acc<T>;
  const AxisTaps<A> rows(p, p.height), cols(p, p.width);
  const int64_t stride = ceil_div(p.width, kLanes) * kLanes, plane = p.height * p.width;
  const auto dense = dense_weights(p, cols, stride);
  const int64_t gathered = p.map_channels - p.first_channel;
  parallel_tasks(p.batch * gathered, [&] {
    return [&, combined = scratch<A>(p.axis_bins * p.kernel_size * stride)](int64_t task) {
      const int64_t n = task / gathered, channel = task % gathered;
      const Levels levels = levels_of(p, channel / p.channels);
      PSPFAST_CALL(gather_plane, p, rows, dense.get(), map + (n * p.map_channels + p.first_channel + channel) * plane,
                   levels.first, levels.last, grad_values + n * values_of(p) * p.channels + channel % p.channels,
                   combined.get(), stride);
    };
  });
}

// Channels of channels_last maps that one task takes: the sources of a row for them shall stay in a 32 KB L1 cache, and
// there shall be work for every thread.
int64_t channel_block(const PyramidUpsampleParams& p, size_t element, int64_t tasks_per_block) {
  constexpr int64_t kLeast = kVectors * kLanes, kL1Bytes = 24 * 1024;
  const int64_t per_channel = sources_of(p, levels_of(p, p.levels - 1)) * p.kernel_size * element;
  const int64_t blocks = ceil_div(4 * at::get_num_threads(), tasks_per_block);
  const int64_t channels = std::min({p.channels, kL1Bytes / per_channel, ceil_div(p.channels, blocks)});
  return std::max(kLeast, channels / kLeast * kLeast);
}

template <class T>
void upsample_channels_last(const PyramidUpsampleParams& p, const PyramidUpsampleEpilogue& epilogue,
                            const Acc<T>* values, T* map) {
  using A = Acc<T>;
  const AxisTaps<A> rows(p, p.height), cols(p, p.width);
  const int64_t block = channel_block(p, sizeof(A), p.batch * p.height);
  parallel_tasks(p.batch * p.height, [&] {
    return [&, combined = scratch<A>(p.axis_bins * p.kernel_size * block)](int64_t task) {
      const int64_t n = task / p.height, row = task % p.height;
      T* to = map + task * p.width * p.map_channels;
      const T* copied = static_cast<const T*>(epilogue.copied) + task * p.width * p.first_channel;
      for (int64_t col = 0; col < p.width && p.first_channel > 0; ++col) {
        std::memcpy(to + col * p.map_channels, copied + col * p.first_channel, p.first_channel * sizeof(T));
      }
      for (int64_t first = p.first_channel; first < p.map_channels; first += p.channels) {
        const Levels levels = levels_of(p, (first - p.first_channel) / p.channels);
        for (int64_t c = 0; c < p.channels; c += block) {
          const T* base = static_cast<const T*>(epilogue.base);
          const T* bias = static_cast<const T*>(epilogue.bias);
          PSPFAST_CALL(upsample_row, p, rows, cols, values + n * values_of(p) * p.channels, row, levels.first,
                       levels.last, c, std::min(block, p.channels - c),
                       Epilogue<T>{base ? base + task * p.width * p.map_channels + first + c : nullptr,
                                   bias ? bias + c : nullptr, epilogue.relu},
                       to + first + c, combined.get(), block);
        }
      }
    };
  });
}

template <class T>
void gather_channels_last(const PyramidUpsampleParams& p, const T* map, Acc<T>* grad_values) {
  using A = Acc<T>;
  const AxisTaps<A> rows(p, p.height), cols(p, p.width);
  const int64_t parts = (p.map_channels - p.first_channel) / p.channels;
  const int64_t block = channel_block(p, sizeof(A), p.batch * parts), blocks = ceil_div(p.channels, block);
  parallel_tasks(p.batch * parts * blocks, [&] {
    return [&, combined = scratch<A>(p.axis_bins * p.kernel_size * block),
            sums = scratch<A>(values_of(p) * block)](int64_t task) {
      const int64_t c = task % blocks * block, part = task / blocks % parts, n = task / blocks / parts;
      const Levels levels = levels_of(p, part);
      const int64_t first_channel = p.first_channel + part * p.channels + c;
      PSPFAST_CALL(gather_channels, p, rows, cols, map + n * p.height * p.width * p.map_channels + first_channel,
                   levels.first, levels.last, c, std::min(block, p.channels - c),
                   grad_values + n * values_of(p) * p.channels, combined.get(), sums.get(), block);
    };
  });
}

}  // namespace

void pyramid_upsample(const PyramidUpsampleParams& params, const PyramidUpsampleEpilogue& epilogue, const void* values,
                      void* map) {
  dispatch(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    advise_huge_pages(map, sizeof(T) * params.batch * params.map_channels * params.height * params.width);
    (params.channels_last ? upsample_channels_last<T> : upsample_contiguous<T>)(
        params, epilogue, static_cast<const Acc<T>*>(values), static_cast<T*>(map));
  });
}

void pyramid_upsample_backward(const PyramidUpsampleParams& params, const void* grad_map, void* grad_values) {
  dispatch(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    (params.channels_last ? gather_channels_last<T> : gather_contiguous<T>)(
        params, static_cast<const T*>(grad_map), static_cast<Acc<T>*>(grad_values));
  });
}

}  // namespace pspfast::cpu
