// The gradients of upsample_concat_conv2d on the CPU: how the work is cut for caches and threads. The loops are in
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

// Positions of a map that are multiplied at a time: more than forward, for products are added up, and a step's result
// is read and written.
constexpr int64_t kGradPositions = 256;

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
                     gathered_.get() + next_ % rows_ * row_stride_, blocks * stride, stride);
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
