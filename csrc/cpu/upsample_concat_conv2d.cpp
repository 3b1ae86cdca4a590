// upsample_concat_conv2d on the CPU: which maps are convolved by Winograd's algorithm, and how the others' work is cut
// for caches and threads. The loops are in upsample_concat_conv2d.inl and matmul.inl.
#include "../upsample_concat_conv2d.h"

#include <memory>
#include <vector>

#include "../winograd.h"
#include "axis_taps.h"
#include "dispatch_dtype.h"
#include "huge_pages.h"
#include "parallel.h"
#include "scratch.h"

namespace pspfast::cpu {
namespace {

// A weight's element (o, c, t), t = k ky + kx, is data[o * out_stride + c * in_stride + t * tap_stride].
template <class T>
struct StridedWeight {
  T* data;
  int64_t out_stride, in_stride, tap_stride, taps;
};

template <class A>
struct Term {
  const A* run;
  A weight;
};

// A row of a map's products by the weight's columns of taps, summed over its rows: a run of the map's columns for each
// tap and block of output channels.
template <class A>
struct MixedRow {
  const A* data;
  int64_t tap_stride, block_stride;
  const AxisTaps<A>* cols;
};

}  // namespace
}  // namespace pspfast::cpu

#define PSPFAST_KERNELS "upsample_concat_conv2d.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;

template <class T>
using Acc = baseline::Acc<T>;

// Columns of a product, taps of output channels: the weight of 512 input channels for them, 1.2 MB, stays near a core's
// own cache, and packing a map's positions for them takes 1 or 2 % of the time of multiplying them.
constexpr int64_t kColumns = 576;
// Positions of a map that are multiplied at a time: enough for the weight's way from the last-level cache not to count,
// and few enough for mixed rows of 64 positions, of which four are kept, to stay in a core's own cache.
constexpr int64_t kPositions = 64;
// The same for gradients, whose products are added up: there a step's result is read and written.
constexpr int64_t kGradPositions = 256;

int64_t taps_of(const UpsampleConcatConv2dParams& p) { return p.kernel_size * p.kernel_size; }

// Output channels in even chunks of at most kColumns / parts columns.
struct Chunks {
  int64_t size, count;

  Chunks(const UpsampleConcatConv2dParams& p, int64_t parts) {
    const int64_t most = std::max(kLanes, kColumns / parts / taps_of(p) / kLanes * kLanes);
    size = round_up(ceil_div(p.out_channels, ceil_div(p.out_channels, most)), kLanes);
    count = ceil_div(p.out_channels, size);
  }
};

// A weight's part for a map, from output channel `first` on.
template <class T>
StridedWeight<T> part_of(const UpsampleConcatConv2dParams& p, T* weight, const SourceMap& map, int64_t first) {
  const int64_t taps = taps_of(p), in_stride = p.weight_channels_last ? 1 : taps;
  T* data = weight + first * p.channels * taps + map.first_channel * in_stride;
  return {data, p.channels * taps, in_stride, p.weight_channels_last ? p.channels : 1, taps};
}

WinogradParams winograd_params(const UpsampleConcatConv2dParams& p, const SourceMap& map) {
  return {p.batch, p.height, p.width, map.channels, p.out_channels, /*dilation=*/1, p.dtype};
}

// A full-size map is best convolved by Winograd's algorithm, which takes 2.25 multiplications a pixel, channel and
// filter. A map upsampled by s takes 9 / s^2 at its own resolution, as many for s = 2 as when it is upsampled and
// convolved; the upsampled map would have to be in memory for that.
bool by_winograd(const UpsampleConcatConv2dParams& p, const SourceMap& map) {
  return p.kernel_size == 3 && map.rows == p.height && map.cols == p.width &&
         winograd_is_faster(winograd_params(p, map));
}

template <class T>
WinogradWeight winograd_weight(const UpsampleConcatConv2dParams& p, const T* weight, const SourceMap& map,
                               bool transposed) {
  const auto part = part_of(p, weight, map, 0);
  return {part.data, part.out_stride, part.in_stride, part.tap_stride, transposed, nullptr};
}

// A map that is mixed at its own resolution.
template <class T>
struct MixedMap {
  using A = Acc<T>;

  SourceMap map;
  AxisTaps<A> rows, cols;
  int64_t depth;  // channels, rounded up to whole vectors

  MixedMap(const UpsampleConcatConv2dParams& p, const SourceMap& map)
      : map(map),
        rows(p.height, map.rows, p.kernel_size, p.align_corners, p.nearest),
        cols(p.width, map.cols, p.kernel_size, p.align_corners, p.nearest),
        depth(round_up(map.channels, kLanes)) {}

  // Runs of columns lie an odd number of cache lines apart, in different sets of the cache.
  int64_t run_stride() const { return (map.cols | 1) * kLanes; }
  const T* row_of(int64_t n, int64_t row) const {
    return static_cast<const T*>(map.data) + (n * map.rows + row) * map.cols * map.channels;
  }
};

// What a thread keeps of a map while it writes rows of the output for a chunk of channels. Mixed rows are in groups,
// which are multiplied together; the last groups, as many as a row of the output may need, are kept.
template <class T>
class Mixer {
 public:
  using A = Acc<T>;

  Mixer(const UpsampleConcatConv2dParams& p, const MixedMap<T>& mixed, int64_t chunk)
      : p_(p),
        mixed_(mixed),
        group_(std::min(mixed.map.rows, ceil_div(kPositions, mixed.map.cols))),
        rows_(group_ * (1 + ceil_div(mixed.rows.most_sources() - 1, group_))),
        block_stride_((rows_ * mixed.map.cols + 1) * kLanes),
        positions_(scratch<A>(group_ * mixed.map.cols * mixed.depth)),
        filters_(scratch<A>(taps_of(p) * mixed.depth * chunk)),
        products_(scratch<A>(chunk / kLanes * taps_of(p) * block_stride_)),
        row_(scratch<A>(chunk / kLanes * p.kernel_size * mixed.run_stride())) {}

  // Takes the weight of output channels [first, first + channels).
  void start(const T* weight, int64_t first, int64_t channels) {
    blocks_ = ceil_div(channels, kLanes);
    next_ = -1;
    for (int64_t block = 0; block < blocks_; ++block) {
      PSPFAST_CALL(pack_filters, part_of(p_, weight, mixed_.map, first + block * kLanes),
                   std::min(kLanes, channels - block * kLanes), mixed_.map.channels, mixed_.depth,
                   filters_.get() + block * taps_of(p_) * mixed_.depth * kLanes);
    }
  }

  // What the map's columns are interpolated from in a row of the output; rows are asked for in ascending order.
  MixedRow<A> row(int64_t n, int64_t row) {
    const auto taps = mixed_.rows.of_position(row);
    if (next_ < 0) next_ = taps.front().source / group_ * group_;
    for (; next_ <= taps.back().source; next_ += group_) multiply(n);
    const int64_t k = p_.kernel_size, stride = mixed_.run_stride();
    for (int64_t kx = 0; kx < k; ++kx) {
      for (int64_t block = 0; block < blocks_; ++block) {
        terms_.clear();
        for (const auto& tap : taps) {
          const A* run = products_.get() + ((block * k + tap.k) * k + kx) * block_stride_;
          terms_.push_back({run + tap.source % rows_ * mixed_.map.cols * kLanes, tap.weight});
        }
        PSPFAST_CALL(sum_runs<A>, terms_, mixed_.map.cols * kLanes, row_.get() + (kx * blocks_ + block) * stride);
      }
    }
    return {row_.get(), blocks_ * stride, stride, &mixed_.cols};
  }

 private:
  void multiply(int64_t n) {
    const int64_t cols = mixed_.map.cols, count = std::min(group_, mixed_.map.rows - next_) * cols;
    PSPFAST_CALL(pack_positions, mixed_.row_of(n, next_), count, mixed_.map.channels, positions_.get());
    PSPFAST_CALL(multiply<A>, count, blocks_ * taps_of(p_),
                 {positions_.get(), count * kLanes, filters_.get(), mixed_.depth * kLanes,
                  products_.get() + next_ % rows_ * cols * kLanes, kLanes, block_stride_, mixed_.depth, false});
  }

  const UpsampleConcatConv2dParams& p_;
  const MixedMap<T>& mixed_;
  int64_t group_, rows_, block_stride_;
  Scratch<A> positions_;  // [depth / 16, positions of a group, 16]
  Scratch<A> filters_;    // [blocks, taps, depth, 16]
  Scratch<A> products_;   // [blocks, taps, rows_, cols, 16]
  Scratch<A> row_;        // [k, blocks, cols, 16]
  std::vector<Term<A>> terms_;
  int64_t blocks_ = 0;
  int64_t next_ = -1;  // the first row that is not yet multiplied
};

// Into how many bands the rows of each of `tasks` tasks are cut, for the threads to be busy alike.
int64_t bands_of(int64_t rows, int64_t tasks) {
  const int64_t threads = thread_count();
  return tasks % threads == 0 ? 1 : std::min(rows, ceil_div(4 * threads, tasks));
}

template <class T>
void add_mixed_maps(const UpsampleConcatConv2dParams& p, const std::vector<MixedMap<T>>& maps, const T* weight,
                    bool add, const T* bias, bool relu, T* out) {
  const Chunks chunks(p, 1);
  const int64_t bands = bands_of(p.height, chunks.count * p.batch);
  parallel_tasks(chunks.count * p.batch * bands, [&] {
    auto mixers = std::make_unique<std::vector<Mixer<T>>>();
    for (const auto& map : maps) mixers->emplace_back(p, map, chunks.size);
    return [&, mixers = std::move(mixers)](int64_t task) {
      const int64_t band = task % bands, n = task / bands % p.batch, first = task / bands / p.batch * chunks.size;
      const int64_t channels = std::min(chunks.size, p.out_channels - first);
      for (auto& mixer : *mixers) mixer.start(weight, first, channels);
      std::vector<MixedRow<Acc<T>>> mixed(maps.size());
      for (int64_t row = p.height * band / bands; row < p.height * (band + 1) / bands; ++row) {
        for (size_t i = 0; i < maps.size(); ++i) mixed[i] = (*mixers)[i].row(n, row);
        PSPFAST_CALL(write_row<T>, p, mixed, channels, add, bias ? bias + first : nullptr, relu,
                     out + (n * p.height + row) * p.width * p.out_channels + first);
      }
    };
  });
}

// The gradient of a map's products by the weight, for a chunk of output channels and rows of the map in ascending
// order. Rows of the output's gradient are gathered into the map's columns once, and kept as long as rows of the map
// need them.
template <class T>
class Gatherer {
 public:
  using A = Acc<T>;

  Gatherer(const UpsampleConcatConv2dParams& p, const MixedMap<T>& mixed, int64_t chunk)
      : p_(p),
        mixed_(mixed),
        rows_(mixed.rows.most_positions()),
        row_stride_(chunk / kLanes * p.kernel_size * mixed.run_stride()),
        gathered_(scratch<A>(rows_ * row_stride_)) {}

  void start(int64_t first, int64_t channels) {
    first_ = first;
    channels_ = channels;
    next_ = 0;
  }

  // Writes the gradient of rows [begin, end) to [blocks, taps, (end - begin) cols, 16].
  void gather(const T* grad, int64_t n, int64_t begin, int64_t end, A* to) {
    const int64_t k = p_.kernel_size, blocks = ceil_div(channels_, kLanes), stride = mixed_.run_stride();
    const int64_t run = mixed_.map.cols * kLanes;
    for (int64_t row = begin; row < end; ++row) {
      const auto [first, last] = mixed_.rows.positions_of(row);
      for (next_ = std::max(next_, first); next_ <= last; ++next_) {
        const T* from = grad + (n * p_.height + next_) * p_.width * p_.out_channels + first_;
        PSPFAST_CALL(gather_row<T>, p_, mixed_.cols, mixed_.map.cols, channels_, from,
                     {gathered_.get() + next_ % rows_ * row_stride_, blocks * stride, stride, nullptr});
      }
      for (int ky = 0; ky < k; ++ky) {
        for (int64_t kx = 0; kx < k; ++kx) {
          for (int64_t block = 0; block < blocks; ++block) {
            terms_.clear();
            for (const auto& tap : mixed_.rows.of_source(row, ky)) {
              const A* from = gathered_.get() + tap.position % rows_ * row_stride_ + (kx * blocks + block) * stride;
              terms_.push_back({from, tap.weight});
            }
            PSPFAST_CALL(sum_runs<A>, terms_, run,
                         to + (((block * k + ky) * k + kx) * (end - begin) + row - begin) * run);
          }
        }
      }
    }
  }

 private:
  const UpsampleConcatConv2dParams& p_;
  const MixedMap<T>& mixed_;
  int64_t rows_, row_stride_;
  Scratch<A> gathered_;  // [rows_, k, blocks, cols, 16]
  std::vector<Term<A>> terms_;
  int64_t first_ = 0, channels_ = 0;
  int64_t next_ = 0;  // the first row that is not yet gathered
};

template <class T>
void mixed_grad_map(const UpsampleConcatConv2dParams& p, const SourceMap& map, const T* grad, const T* weight,
                    T* grad_map) {
  using A = Acc<T>;
  const MixedMap<T> mixed(p, map);
  // Half as many columns as forward: twice as many positions have to stay in the cache with them.
  const Chunks chunks(p, 2);
  const int64_t taps = taps_of(p), in_blocks = mixed.depth / kLanes, block_stride = chunks.size * taps * kLanes;
  const auto filters = scratch<A>(chunks.count * in_blocks * block_stride);
  parallel_for(chunks.count * chunks.size / kLanes, [&](int64_t block) {
    const int64_t first = block * kLanes, outs = std::clamp<int64_t>(p.out_channels - first, 0, kLanes);
    A* to = filters.get() + first / chunks.size * in_blocks * block_stride + first % chunks.size * taps * kLanes;
    PSPFAST_CALL(pack_filters_transposed, part_of(p, weight, map, first), outs, map.channels, block_stride, to);
  });
  const int64_t even = ceil_div(map.rows, ceil_div(thread_count(), p.batch));
  const int64_t band = std::min(even, ceil_div(kGradPositions, map.cols)), bands = ceil_div(map.rows, band);
  const int64_t most = band * map.cols;
  parallel_tasks(p.batch * bands, [&] {
    return [&, gatherer = std::make_unique<Gatherer<T>>(p, mixed, chunks.size),
            grads = scratch<A>(chunks.size * taps * most), sums = scratch<A>(mixed.depth * most)](int64_t task) {
      const int64_t n = task / bands, begin = task % bands * band, end = std::min(map.rows, begin + band);
      const int64_t count = (end - begin) * map.cols;
      for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
        const int64_t first = chunk * chunks.size, channels = std::min(chunks.size, p.out_channels - first);
        gatherer->start(first, channels);
        gatherer->gather(grad, n, begin, end, grads.get());
        PSPFAST_CALL(multiply<A>, count, in_blocks,
                     {grads.get(), count * kLanes, filters.get() + chunk * in_blocks * block_stride, block_stride,
                      sums.get(), kLanes, count * kLanes, round_up(channels, kLanes) * taps, chunk > 0});
      }
      T* to = grad_map + (n * map.rows + begin) * map.cols * map.channels;
      PSPFAST_CALL(unpack_positions<T>, sums.get(), count, map.channels, to);
    };
  });
}

template <class T>
void mixed_grad_weight(const UpsampleConcatConv2dParams& p, const SourceMap& map, const T* grad, Acc<T>* grad_weight) {
  using A = Acc<T>;
  const MixedMap<T> mixed(p, map);
  // Fewer columns where there would be too few tasks for the threads.
  int64_t parts = 1;
  while (Chunks(p, parts).size > kLanes && Chunks(p, parts).count < thread_count()) parts *= 2;
  const Chunks chunks(p, parts);
  const int64_t taps = taps_of(p), in_blocks = mixed.depth / kLanes;
  const int64_t band = std::min(map.rows, ceil_div(kGradPositions / 2, map.cols)), most = band * map.cols;
  parallel_tasks(chunks.count, [&] {
    return [&, gatherer = std::make_unique<Gatherer<T>>(p, mixed, chunks.size),
            grads = scratch<A>(chunks.size * taps * most), positions = scratch<A>(mixed.depth * most),
            sums = scratch<A>(mixed.depth * chunks.size * taps)](int64_t task) {
      const int64_t first = task * chunks.size, channels = std::min(chunks.size, p.out_channels - first);
      const int64_t rows = round_up(channels, kLanes) * taps;
      for (int64_t n = 0; n < p.batch; ++n) {
        gatherer->start(first, channels);
        for (int64_t begin = 0; begin < map.rows; begin += band) {
          const int64_t end = std::min(map.rows, begin + band), count = (end - begin) * map.cols;
          gatherer->gather(grad, n, begin, end, grads.get());
          PSPFAST_CALL(pack_positions, mixed.row_of(n, begin), count, map.channels, positions.get());
          PSPFAST_CALL(multiply_transposed<A>, rows, in_blocks,
                       {grads.get(), count * kLanes, positions.get(), count * kLanes, sums.get(), kLanes, rows * kLanes,
                        count, n > 0 || begin > 0});
        }
      }
      for (int64_t o = 0; o < channels; o += kLanes) {
        PSPFAST_CALL(unpack_grad_filters<A>, sums.get() + o * taps * kLanes, rows * kLanes,
                     std::min(kLanes, channels - o), map.channels, part_of(p, grad_weight, map, first + o));
      }
    };
  });
}

}  // namespace

void upsample_concat_conv2d(const UpsampleConcatConv2dParams& params, const SourceMap* maps, int64_t count,
                            const void* weight, const void* bias, bool relu, void* out) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    advise_huge_pages(out, sizeof(T) * params.batch * params.height * params.width * params.out_channels);
    const auto filters = static_cast<const T*>(weight);
    std::vector<SourceMap> convolved;
    std::vector<MixedMap<T>> mixed;
    for (const SourceMap& map : std::span(maps, count)) {
      if (map.channels == 0) continue;
      by_winograd(params, map) ? convolved.push_back(map) : void(mixed.emplace_back(params, map));
    }
    for (size_t i = 0; i < convolved.size(); ++i) {
      const bool is_last = mixed.empty() && i + 1 == convolved.size();
      winograd_conv2d(winograd_params(params, convolved[i]), convolved[i].data,
                      winograd_weight(params, filters, convolved[i], false),
                      {is_last ? bias : nullptr, i > 0 ? out : nullptr, is_last && relu}, out);
    }
    if (!mixed.empty() || convolved.empty()) {
      add_mixed_maps(params, mixed, filters, !convolved.empty(), static_cast<const T*>(bias), relu,
                     static_cast<T*>(out));
    }
  });
}

void upsample_concat_conv2d_grad_map(const UpsampleConcatConv2dParams& params, const SourceMap& map, const void* grad,
                                     const void* weight, void* grad_map) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto filters = static_cast<const T*>(weight);
    advise_huge_pages(grad_map, sizeof(T) * params.batch * map.rows * map.cols * map.channels);
    if (by_winograd(params, map)) {
      WinogradParams transposed = winograd_params(params, map);
      std::swap(transposed.in_channels, transposed.out_channels);
      winograd_conv2d(transposed, grad, winograd_weight(params, filters, map, true), {}, grad_map);
    } else {
      mixed_grad_map(params, map, static_cast<const T*>(grad), filters, static_cast<T*>(grad_map));
    }
  });
}

void upsample_concat_conv2d_grad_weight(const UpsampleConcatConv2dParams& params, const SourceMap* maps, int64_t count,
                                        const void* grad, void* grad_weight) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto sums = static_cast<Acc<T>*>(grad_weight);
    advise_huge_pages(sums, sizeof(Acc<T>) * params.out_channels * params.channels * taps_of(params));
    for (const SourceMap& map : std::span(maps, count)) {
      if (map.channels == 0) continue;
      if (by_winograd(params, map)) {
        if constexpr (!std::is_same_v<T, double>) {
          winograd_weight_gradient(winograd_params(params, map), map.data, grad, params.weight_channels_last,
                                   params.channels, part_of(params, sums, map, 0).data);
        }
      } else {
        mixed_grad_weight(params, map, static_cast<const T*>(grad), sums);
      }
    }
  });
}

}  // namespace pspfast::cpu
