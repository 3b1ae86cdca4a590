// pyramid_upsample on the CPU: tables of taps, and how the work is cut for threads. The loops are in
// pyramid_upsample.inl.
#include "../pyramid_upsample.h"

#include <vector>

#include "dispatch_dtype.h"
#include "huge_pages.h"
#include "parallel.h"
#include "scratch.h"

namespace pspfast::cpu {
namespace {

// The levels [first, last) that a channel of the map is made of.
struct Levels {
  int first, last;
};

int64_t axis_bins_of(const PyramidUpsampleParams& p, Levels levels) {
  return p.axis_offset[levels.last - 1] + p.bins[levels.last - 1] - p.axis_offset[levels.first];
}

// The number of values of one channel of an image.
int64_t values_of(const PyramidUpsampleParams& p) { return int64_t(p.bin_count) * p.kernel_size * p.kernel_size; }

// The first value of a level; behind the last level, the number of values.
int64_t first_value(const PyramidUpsampleParams& p, int level) {
  return level < p.levels ? p.value_index(level, 0, 0, 0, 0) : values_of(p);
}

// A position of an axis of the map reads source `source` of a level, by tap k of the convolution.
template <class A>
struct SourceTap {
  int32_t source, k;
  int32_t offset;  // in [sources of all levels, k]
  A weight;
};

template <class E>
struct Span {
  const E *first, *last;
  const E* begin() const { return first; }
  const E* end() const { return last; }
};

// The taps of every position of an axis, level after level, without those of weight zero.
template <class A>
class AxisTaps {
 public:
  AxisTaps(const PyramidUpsampleParams& p, int64_t size) : levels_(p.levels) {
    taps_.reserve(size * p.levels * p.kernel_size * 2);
    first_.reserve(size * p.levels + 1);
    for (int64_t position = 0; position < size; ++position) {
      for (int level = 0; level < p.levels; ++level) {
        first_.push_back(taps_.size());
        for (int k = 0; k < p.kernel_size; ++k) {
          const int64_t read = position + k - p.kernel_size / 2;
          if (read < 0 || read >= size) {
            continue;
          }
          const auto tap = interpolation_tap<A>(static_cast<int32_t>(read), static_cast<int32_t>(size), p.bins[level],
                                                p.align_corners);
          const auto add = [&](int32_t source, A weight) {
            if (weight != 0) {
              taps_.push_back({source, k, (p.axis_offset[level] + source) * p.kernel_size + k, weight});
            }
          };
          add(tap.low, 1 - tap.weight);
          add(tap.high, tap.weight);
        }
      }
    }
    first_.push_back(taps_.size());
  }

  Span<SourceTap<A>> at(int64_t position, Levels levels) const {
    const size_t* first = &first_[position * levels_];
    return {&taps_[first[levels.first]], &taps_[0] + first[levels.last]};
  }

 private:
  int levels_;
  std::vector<SourceTap<A>> taps_;
  std::vector<size_t> first_;  // the first tap of every position and level; and the end
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
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;
constexpr int64_t kVectors = baseline::kVectors;

template <class T>
using Acc = baseline::Acc<T>;

Levels levels_of(const PyramidUpsampleParams& p, int64_t group) {
  return p.sum_levels ? Levels{0, p.levels} : Levels{static_cast<int>(group), static_cast<int>(group) + 1};
}

// The map's upsampled channels are this many groups of `channels` channels: one if the levels are summed, else one for
// each level.
int64_t group_count(const PyramidUpsampleParams& p) { return p.sum_levels ? 1 : p.levels; }

// The weights [sources, k, stride] of every column, zero up to the stride.
template <class A>
Scratch<A> dense_weights(const PyramidUpsampleParams& p, const AxisTaps<A>& cols, int64_t stride) {
  auto weights = zeros<A>(p.axis_bins * p.kernel_size * stride);
  for (int64_t col = 0; col < p.width; ++col) {
    for (const auto& tap : cols.at(col, {0, p.levels})) {
      weights[tap.offset * stride + col] += tap.weight;
    }
  }
  return weights;
}

// Calls f(image, channel of its values, plane of the map, group, count) in parallel, for runs of `count` <= 16
// neighbouring planes of a contiguous map. make_f makes an f for a thread, as make_task of parallel_tasks.
template <class MakeF>
void for_each_plane_run(const PyramidUpsampleParams& p, const MakeF& make_f) {
  const int64_t groups = group_count(p), runs = ceil_div(p.channels, kLanes);
  parallel_tasks(p.batch * groups * runs, [&] {
    return [&, f = make_f()](int64_t task) {
      const int64_t c = task % runs * kLanes, group = task / runs % groups, n = task / runs / groups;
      f(n, c, n * p.map_channels + p.first_channel + group * p.channels + c, group, std::min(kLanes, p.channels - c));
    };
  });
}

template <class T>
void upsample_contiguous(const PyramidUpsampleParams& p, const MapUpsampleEpilogue& epilogue, const Acc<T>* values,
                         T* map) {
  using A = Acc<T>;
  const AxisTaps<A> rows(p, p.height), cols(p, p.width);
  const int64_t stride = round_up(p.width, kVectors * kLanes), plane = p.height * p.width;
  const auto weights = dense_weights(p, cols, stride);
  if (p.first_channel > 0) {
    parallel_tasks(p.batch * p.first_channel, [&] {
      return [&](int64_t task) {
        const int64_t n = task / p.first_channel, channel = task % p.first_channel;
        std::memcpy(map + (n * p.map_channels + channel) * plane, static_cast<const T*>(epilogue.copied) + task * plane,
                    plane * sizeof(T));
      };
    });
  }
  const T* base = static_cast<const T*>(epilogue.base);
  const T* bias = static_cast<const T*>(epilogue.bias);
  for_each_plane_run(p, [&] {
    return [&, combined = scratch<A>(p.axis_bins * p.kernel_size * stride), lanes = scratch<A>(values_of(p) * kLanes)](
               int64_t n, int64_t c, int64_t first, int64_t group, int64_t count) {
      for (int64_t value = 0; value < values_of(p); ++value) {
        std::copy_n(values + (n * values_of(p) + value) * p.channels + c, count, &lanes[value * kLanes]);
      }
      for (int64_t i = 0; i < count; ++i) {
        const Epilogue<T> of_plane{base ? base + (first + i) * plane : nullptr, bias ? bias + c + i : nullptr,
                                   epilogue.relu};
        PSPFAST_CALL(upsample_plane, p, rows, weights.get(), &lanes[i], levels_of(p, group), of_plane,
                     map + (first + i) * plane, combined.get(), stride);
      }
    };
  });
}

template <class T>
void upsample_contiguous_backward(const PyramidUpsampleParams& p, const T* map, Acc<T>* grad_values) {
  using A = Acc<T>;
  const AxisTaps<A> rows(p, p.height), cols(p, p.width);
  const int64_t stride = round_up(p.width, kVectors * kLanes), plane = p.height * p.width;
  const auto weights = dense_weights(p, cols, stride);
  for_each_plane_run(p, [&] {
    return [&, combined = scratch<A>(p.axis_bins * p.kernel_size * stride), lanes = scratch<A>(values_of(p) * kLanes)](
               int64_t n, int64_t c, int64_t first, int64_t group, int64_t count) {
      const Levels levels = levels_of(p, group);
      for (int64_t i = 0; i < count; ++i) {
        PSPFAST_CALL(upsample_plane_backward, p, rows, weights.get(), map + (first + i) * plane, levels, &lanes[i],
                     combined.get(), stride);
      }
      const int64_t end = first_value(p, levels.last);
      for (int64_t value = first_value(p, levels.first); value < end; ++value) {
        std::copy_n(&lanes[value * kLanes], count, grad_values + (n * values_of(p) + value) * p.channels + c);
      }
    };
  });
}

// The number of channels of channels_last maps that one task takes: their sources of a row stay in a 32 KB L1 cache.
int64_t channel_block(const PyramidUpsampleParams& p, size_t element) {
  constexpr int64_t kLeast = kVectors * kLanes, kL1Bytes = 24 * 1024;
  const int64_t per_channel = axis_bins_of(p, levels_of(p, p.levels - 1)) * p.kernel_size * element;
  return std::max(kLeast, std::min(p.channels, kL1Bytes / per_channel) / kLeast * kLeast);
}

// Into how many pieces each of `tasks` tasks is cut, at most `size`, for every thread to get at least four.
int64_t pieces_of(int64_t size, int64_t tasks) { return std::min(size, ceil_div(4 * thread_count(), tasks)); }

template <class T>
void upsample_channels_last(const PyramidUpsampleParams& p, const MapUpsampleEpilogue& epilogue, const Acc<T>* values,
                            T* map) {
  using A = Acc<T>;
  const AxisTaps<A> rows(p, p.height), cols(p, p.width);
  const int64_t block = channel_block(p, sizeof(A)), blocks = ceil_div(p.channels, block), groups = group_count(p);
  const int64_t bands = pieces_of(p.height, p.batch * groups * blocks);
  const T* base = static_cast<const T*>(epilogue.base);
  const T* bias = static_cast<const T*>(epilogue.bias);
  parallel_tasks(p.batch * p.height * (p.first_channel > 0), [&] {
    return [&](int64_t task) {
      T* to = map + task * p.width * p.map_channels;
      const T* from = static_cast<const T*>(epilogue.copied) + task * p.width * p.first_channel;
      for (int64_t col = 0; col < p.width; ++col) {
        std::memcpy(to + col * p.map_channels, from + col * p.first_channel, p.first_channel * sizeof(T));
      }
    };
  });
  parallel_tasks(p.batch * groups * blocks * bands, [&] {
    return [&, combined = scratch<A>(p.axis_bins * p.kernel_size * block),
            block_values = zeros<A>(values_of(p) * block)](int64_t task) {
      const int64_t band = task % bands, c = task / bands % blocks * block;
      const int64_t group = task / bands / blocks % groups, n = task / bands / blocks / groups;
      const int64_t count = std::min(block, p.channels - c);
      // Values of all channels lie a power of two apart, in few sets of a cache.
      const Levels levels = levels_of(p, group);
      const int64_t end = first_value(p, levels.last);
      for (int64_t value = first_value(p, levels.first); value < end; ++value) {
        std::copy_n(values + (n * values_of(p) + value) * p.channels + c, count, &block_values[value * block]);
      }
      const int64_t channel = p.first_channel + group * p.channels + c;
      for (int64_t row = p.height * band / bands; row < p.height * (band + 1) / bands; ++row) {
        const int64_t offset = (n * p.height + row) * p.width * p.map_channels + channel;
        const Epilogue<T> of_row{base ? base + offset : nullptr, bias ? bias + c : nullptr, epilogue.relu};
        PSPFAST_CALL(upsample_row, p, rows, cols, block_values.get(), row, levels, count, of_row, map + offset,
                     combined.get(), block);
      }
    };
  });
}

template <class T>
void upsample_channels_last_backward(const PyramidUpsampleParams& p, const T* map, Acc<T>* grad_values) {
  using A = Acc<T>;
  const AxisTaps<A> rows(p, p.height), cols(p, p.width);
  constexpr int64_t kLeast = kVectors * kLanes;
  const int64_t groups = group_count(p);
  // A channel's gradient is summed by one thread.
  const int64_t wanted = ceil_div(p.channels, pieces_of(p.channels, p.batch * groups));
  const int64_t block = std::min(channel_block(p, sizeof(A)), round_up(wanted, kLeast));
  const int64_t blocks = ceil_div(p.channels, block);
  parallel_tasks(p.batch * groups * blocks, [&] {
    return [&, combined = scratch<A>(p.axis_bins * p.kernel_size * block),
            sums = scratch<A>(values_of(p) * block)](int64_t task) {
      const int64_t c = task % blocks * block, group = task / blocks % groups, n = task / blocks / groups;
      const int64_t count = std::min(block, p.channels - c);
      const Levels levels = levels_of(p, group);
      PSPFAST_CALL(upsample_channels_backward, p, rows, cols,
                   map + n * p.height * p.width * p.map_channels + p.first_channel + group * p.channels + c, levels,
                   count, combined.get(), sums.get(), block);
      const int64_t end = first_value(p, levels.last);
      for (int64_t value = first_value(p, levels.first); value < end; ++value) {
        std::copy_n(&sums[value * block], count, grad_values + (n * values_of(p) + value) * p.channels + c);
      }
    };
  });
}

}  // namespace

void pyramid_upsample(const PyramidUpsampleParams& params, const MapUpsampleEpilogue& epilogue, const void* values,
                      void* map) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    advise_huge_pages(map, sizeof(T) * params.batch * params.map_channels * params.height * params.width);
    (params.channels_last ? upsample_channels_last<T> : upsample_contiguous<T>)(params, epilogue,
                                                                                static_cast<const Acc<T>*>(values),
                                                                                static_cast<T*>(map));
  });
}

void pyramid_upsample_backward(const PyramidUpsampleParams& params, const void* grad_map, void* grad_values,
                               float* /*sums*/) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    (params.channels_last
         ? upsample_channels_last_backward<T>
         : upsample_contiguous_backward<T>)(params, static_cast<const T*>(grad_map), static_cast<Acc<T>*>(grad_values));
  });
}

}  // namespace pspfast::cpu
