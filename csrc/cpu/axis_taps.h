// What a convolution over an interpolated axis reads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "../geometry.h"

namespace pspfast::cpu {

template <class A>
struct AxisTap {
  int32_t source, position, k;
  A weight;
};

// Position i of an axis reads source u by tap k of the convolution with a weight: A[i + k - K / 2, u]. Taps of weight
// zero are left out; every position and every source that is read has its taps in ascending order.
template <class A>
class AxisTaps {
 public:
  AxisTaps(int64_t size, int64_t sources, int kernel_size, bool align_corners, bool nearest)
      : kernel_size_(kernel_size), by_position_(size), by_source_(sources * kernel_size) {
    for (int64_t position = 0; position < size; ++position) {
      for (int k = 0; k < kernel_size; ++k) {
        const int64_t read = position + k - kernel_size / 2;
        if (read < 0 || read >= size) continue;
        const auto tap = nearest ? Tap<A>{nearest_source(read, size, sources), 0, A(0)}
                                 : interpolation_tap<A>(static_cast<int32_t>(read), static_cast<int32_t>(size),
                                                        static_cast<int32_t>(sources), align_corners);
        const auto add = [&](int32_t source, A weight) {
          if (weight == 0) return;
          const AxisTap<A> added{source, static_cast<int32_t>(position), k, weight};
          by_position_[position].push_back(added);
          by_source_[source * kernel_size + k].push_back(added);
        };
        add(tap.low, 1 - tap.weight);
        add(tap.high, tap.weight);
      }
    }
  }

  std::span<const AxisTap<A>> of_position(int64_t position) const { return by_position_[position]; }
  std::span<const AxisTap<A>> of_source(int64_t source, int k) const { return by_source_[source * kernel_size_ + k]; }

  // Positions [first, last] that read a source by any tap. There are some: an axis has no more sources than positions.
  std::pair<int64_t, int64_t> positions_of(int64_t source) const {
    int64_t first = by_position_.size(), last = -1;
    for (int k = 0; k < kernel_size_; ++k) {
      for (const auto& tap : of_source(source, k)) {
        first = std::min<int64_t>(first, tap.position);
        last = std::max<int64_t>(last, tap.position);
      }
    }
    return {first, last};
  }

  // The largest number of neighbouring sources that a position needs.
  int64_t most_sources() const {
    int64_t most = 1;
    for (const auto& taps : by_position_) {
      most = std::max<int64_t>(most, taps.back().source - taps.front().source + 1);
    }
    return most;
  }

  // The largest number of neighbouring positions that need a source.
  int64_t most_positions() const {
    int64_t most = 1;
    for (size_t source = 0; source < by_source_.size() / kernel_size_; ++source) {
      const auto [first, last] = positions_of(source);
      most = std::max(most, last - first + 1);
    }
    return most;
  }

 private:
  int kernel_size_;
  std::vector<std::vector<AxisTap<A>>> by_position_, by_source_;
};

}  // namespace pspfast::cpu
