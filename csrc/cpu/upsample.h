// Tables of interpolation taps for the CPU kernels of upsample_cross_entropy, upsample_argmax and upsample_softmax.
#pragma once

#include <algorithm>
#include <vector>

#include "../upsample.h"

namespace pspfast::cpu {

inline int64_t image_size(const UpsampleParams& p) { return p.classes * p.rows * p.cols; }

// Positions of an axis of the image, by the source that they read at or before them.
template <class A>
struct AxisSegments {
  std::vector<int32_t> low;    // the source that each position reads
  std::vector<A> weight;       // the weight of the source behind it; behind the last source lies itself
  std::vector<int64_t> first;  // the first position of each source; and the end

  AxisSegments(int64_t size, int64_t sources, bool align_corners) : first(sources + 1, size) {
    for (int64_t position = 0; position < size; ++position) {
      const auto tap = interpolation_tap<A>(static_cast<int32_t>(position), static_cast<int32_t>(size),
                                            static_cast<int32_t>(sources), align_corners);
      low.push_back(tap.low);
      weight.push_back(tap.weight);
    }
    for (int64_t source = sources - 1, position = size; source >= 0; --source) {
      while (position > 0 && low[position - 1] >= source) --position;
      first[source] = position;
    }
  }

  int64_t longest() const {
    int64_t length = 0;
    for (size_t source = 0; source + 1 < first.size(); ++source) {
      length = std::max(length, first[source + 1] - first[source]);
    }
    return length;
  }
};

// Where an image's labels go: to `data`, which may be null, from element `first` on.
struct LabelOutput {
  LabelType type;
  void* data;
  int64_t first;
};

}  // namespace pspfast::cpu
