// upsample_concat_conv2d on the CPU: how the work is cut for caches and threads. The loops are in
// upsample_concat_conv2d.inl and matmul.inl.
#include <memory>
#include <vector>

#include "dispatch_dtype.h"
#include "huge_pages.h"
#include "parallel.h"
#include "scratch.h"
#include "upsample_concat_conv2d.h"

#define PSPFAST_KERNELS "upsample_concat_conv2d.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

static_assert(kLanes == baseline::kLanes && std::is_same_v<Acc<float>, baseline::Acc<float>> &&
              std::is_same_v<Acc<double>, baseline::Acc<double>>);

// Positions of a map that are multiplied at a time: enough for the weight's way from the last-level cache not to count,
// and few enough for mixed rows of 64 positions, of which four are kept, to stay in a core's own cache.
constexpr int64_t kPositions = 64;

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
      if (by_winograd(params, map)) {
        convolved.push_back(map);
      } else {
        mixed.emplace_back(params, map);
      }
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

}  // namespace pspfast::cpu
