// pyramid_upsample: the channels of the map that are copied. In either memory format they are rows of memory: of a
// pixel if channels_last, else of an image.
#pragma once

#include <cstdint>

#include "launch.h"

namespace pspfast::cuda {

constexpr int kCopyThreads = 256;
// Words of a thread in flight.
constexpr int kCopyBatch = 4;

// Copies `words` words: `from` is [rows, row_words], and rows of `to` begin `to_stride` words apart. Index is a type
// that holds their number and that of a grid's more: division in 64 bits is slow for every 16 bytes.
template <typename Word, typename Index>
__global__ void __launch_bounds__(kCopyThreads) copy_rows_kernel(const Word* __restrict__ from, Word* __restrict__ to,
                                                                 Index words, Index row_words, int64_t to_stride) {
  const Index step = kCopyThreads * kCopyBatch;
  for (Index first = blockIdx.x * step + threadIdx.x; first < words; first += gridDim.x * step) {
    Word batch[kCopyBatch];
#pragma unroll
    for (int i = 0; i < kCopyBatch; ++i) {
      const Index word = first + i * kCopyThreads;
      if (word < words) batch[i] = from[word];
    }
#pragma unroll
    for (int i = 0; i < kCopyBatch; ++i) {
      const Index word = first + i * kCopyThreads;
      if (word < words) to[word / row_words * to_stride + word % row_words] = batch[i];
    }
  }
}

}  // namespace pspfast::cuda
