// pyramid_pool on the CPU: how the work is cut for threads. The loops are in pyramid_pool.inl.
#include "../pyramid_pool.h"

#include "dispatch_dtype.h"
#include "huge_pages.h"
#include "parallel.h"
#include "scratch.h"

#define PSPFAST_KERNELS "pyramid_pool.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;

template <class T>
using Acc = baseline::Acc<T>;

// One task takes this many channels of channels_last maps: a row of at most 11 cells of them, in float, is 22 KB and
// stays in a 32 KB L1 cache while the map streams by.
constexpr int64_t kChannelBlock = 512;

template <class T>
void pool_contiguous(const PyramidPoolParams& p, const T* x, T* pooled) {
  const int64_t planes = p.batch * p.channels, plane = p.height * p.width, bins = p.cells.bin_count;
  const int64_t cells = int64_t(p.cells.rows.count) * p.cells.cols.count;
  parallel_tasks(ceil_div(planes, kLanes), [&] {
    return [&, cell = scratch<Acc<T>>(cells * kLanes), bin = scratch<Acc<T>>(bins * kLanes),
            sum = scratch<Acc<T>>(p.width)](int64_t task) {
      const int64_t first = task * kLanes;
      const int lanes = static_cast<int>(std::min(kLanes, planes - first));
      PSPFAST_CALL(pool_planes, p, x + first * plane, lanes, pooled + first * bins, cell.get(), bin.get(), sum.get());
    };
  });
}

template <class T>
void pool_contiguous_backward(const PyramidPoolParams& p, const T* grad, T* grad_x) {
  const int64_t planes = p.batch * p.channels, plane = p.height * p.width, bins = p.cells.bin_count;
  parallel_tasks(ceil_div(planes, kLanes), [&] {
    return [&, bin = scratch<Acc<T>>(bins * kLanes),
            cell = scratch<Acc<T>>(p.cells.cols.count * kLanes)](int64_t task) {
      const int64_t first = task * kLanes;
      const int lanes = static_cast<int>(std::min(kLanes, planes - first));
      PSPFAST_CALL(pool_planes_backward, p, grad + first * bins, lanes, grad_x + first * plane, bin.get(), cell.get());
    };
  });
}

template <class T>
void pool_channels_last(const PyramidPoolParams& p, const T* x, T* pooled) {
  const int64_t image = p.height * p.width * p.channels;
  const int64_t rows = p.cells.rows.count, cols = p.cells.cols.count, blocks = ceil_div(p.channels, kChannelBlock);
  const auto cells = scratch<Acc<T>>(p.batch * rows * cols * p.channels);
  parallel_tasks(p.batch * rows * blocks, [&] {
    return [&](int64_t task) {
      const int64_t c0 = task % blocks * kChannelBlock, row_cell = task / blocks % rows, n = task / blocks / rows;
      PSPFAST_CALL(sum_row_of_cells, p, x + n * image, static_cast<int>(row_cell), c0,
                   std::min(c0 + kChannelBlock, p.channels), &cells[(n * rows + row_cell) * cols * p.channels]);
    };
  });
  const int64_t vectors = ceil_div(p.channels, kLanes), bins = p.cells.bin_count;
  parallel_tasks(p.batch * vectors, [&] {
    return [&, bin = scratch<Acc<T>>(bins * kLanes), lane_cells = scratch<Acc<T>>(rows * cols * kLanes)](int64_t task) {
      const int64_t c = task % vectors * kLanes, n = task / vectors;
      PSPFAST_CALL(pool_channels, p, &cells[n * rows * cols * p.channels], c, std::min(kLanes, p.channels - c),
                   pooled + n * bins * p.channels, bin.get(), lane_cells.get());
    };
  });
}

template <class T>
void pool_channels_last_backward(const PyramidPoolParams& p, const T* grad, T* grad_x) {
  const int64_t image = p.height * p.width * p.channels, bins = p.cells.bin_count;
  const int64_t rows = p.cells.rows.count, cols = p.cells.cols.count, blocks = ceil_div(p.channels, kChannelBlock);
  parallel_tasks(p.batch * rows * blocks, [&] {
    return [&, bin = scratch<Acc<T>>(bins * kLanes), lane_cells = scratch<Acc<T>>(cols * kLanes),
            cells = scratch<T>(cols * kChannelBlock)](int64_t task) {
      const int64_t c0 = task % blocks * kChannelBlock, row_cell = task / blocks % rows, n = task / blocks / rows;
      PSPFAST_CALL(sum_row_of_cells_backward, p, grad + n * bins * p.channels, static_cast<int>(row_cell), c0,
                   std::min(c0 + kChannelBlock, p.channels), grad_x + n * image, bin.get(), lane_cells.get(),
                   cells.get());
    };
  });
}

}  // namespace

void pyramid_pool(const PyramidPoolParams& params, const void* x, float* /*sums*/, void* pooled) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    (params.channels_last ? pool_channels_last<T> : pool_contiguous<T>)(params, static_cast<const T*>(x),
                                                                        static_cast<T*>(pooled));
  });
}

void pyramid_pool_backward(const PyramidPoolParams& params, const void* grad_pooled, void* grad_x) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    advise_huge_pages(grad_x, sizeof(T) * params.batch * params.channels * params.height * params.width);
    (params.channels_last
         ? pool_channels_last_backward<T>
         : pool_contiguous_backward<T>)(params, static_cast<const T*>(grad_pooled), static_cast<T*>(grad_x));
  });
}

}  // namespace pspfast::cpu
