// Loops of pyramid_mix on one thread, included once per instruction set. A filter is the weight of one output channel.
// Its channels of one level are brought into another order first, in the type of sums.
#include "matmul.inl"

// A backward step takes this many vectors of channels: with 9 taps their sums, or their weights, fit into 32 registers.
constexpr int kWide = 2;

// Reads the channels [first, first + count) of a filter into filter_taps [taps, stride]; channels up to the stride are
// zero.
template <class T, int kTaps>
void load_filter(const PyramidMixParams& p, const T* filter, int64_t first, int64_t count, Acc<T>* filter_taps,
                 int64_t stride) {
  for (int t = 0; t < kTaps; ++t) {
    for (int64_t r = 0; r < stride; r += kLanes) {
      const int64_t lanes = std::clamp<int64_t>(count - r, 0, kLanes);
      if (p.channels_last) {
        const T* from = filter + t * p.channels + first + r;
        store(filter_taps + t * stride + r, lanes == kLanes ? load(from) : load(from, lanes));
        continue;
      }
      T gathered[kLanes] = {};
      for (int64_t i = 0; i < lanes; ++i) gathered[i] = filter[(first + r + i) * kTaps + t];
      store(filter_taps + t * stride + r, load(gathered));
    }
  }
}

// Writes them back into the filter.
template <class T, int kTaps>
void store_filter(const PyramidMixParams& p, const Acc<T>* filter_taps, int64_t stride, int64_t first, int64_t count,
                  T* filter) {
  for (int t = 0; t < kTaps; ++t) {
    for (int64_t r = 0; r < count; r += kLanes) {
      const int64_t lanes = std::min(count - r, kLanes);
      T packed[kLanes];
      store(packed, load(filter_taps + t * stride + r));
      for (int64_t i = 0; i < lanes; ++i) {
        filter[p.channels_last ? t * p.channels + first + r + i : (first + r + i) * kTaps + t] = packed[i];
      }
    }
  }
}

// The number of bins of a level in all images.
inline int64_t bins_of(const PyramidMixParams& p, int level) { return p.batch * p.bins[level] * p.bins[level]; }

// The offset of bin q of [N, bins of the level] among [N, S].
inline int64_t bin_index(const PyramidMixParams& p, int level, int64_t q) {
  const int64_t bins = int64_t(p.bins[level]) * p.bins[level];
  return q / bins * p.bin_count + p.bin_offset[level] + q % bins;
}

// The distance of taps in transposed filters: an odd number of cache lines, so that they fall into different sets.
inline int64_t tap_stride(int64_t stride) { return (stride + 1) * kLanes; }

// Transposes the channels of one level of `count` <= 16 filters, a lane each, to [taps, stride, 16]. Every line of
// memory is read once: lines of several filters often fall into one set of the cache.
template <class T, int kTaps>
void transpose_filters(const PyramidMixParams& p, const T* filters, int64_t count, int level, Acc<T>* transposed,
                       int64_t stride) {
  const int64_t first = p.first_prior + level * p.reduction;
  for (int64_t begin = 0; begin < p.reduction; begin += kLanes) {
    const int64_t end = std::min(begin + kLanes, p.reduction);
    for (int64_t i = 0; i < count; ++i) {
      const T* filter = filters + i * p.channels * kTaps;
      for (int t = 0; t < kTaps; ++t) {
        const T* from = filter + (p.channels_last ? t * p.channels + first : first * kTaps + t);
        Acc<T>* to = transposed + t * tap_stride(stride) + i;
        for (int64_t r = begin; r < end; ++r) to[r * kLanes] = from[r * (p.channels_last ? 1 : kTaps)];
      }
    }
  }
}

// Computes `count` <= 16 output channels of `mixed`, which points to the first of them. Priors are [stride / 16, N,
// bins, 16] for each level, zero behind R. Scratch: transposed [taps, stride, 16], which is finite behind R, and
// products [taps, N, bins of a level, 16].
template <class T, int kTaps>
void mix_filters(Constant<kTaps>, const PyramidMixParams& p, const T* filters, int64_t count, const Acc<T>* priors,
                 int64_t stride, Acc<T>* mixed, Acc<T>* transposed, Acc<T>* products) {
  for (int level = 0; level < p.levels; ++level) {
    const int64_t bins = bins_of(p, level), rows = bins * kLanes;
    transpose_filters<T, kTaps>(p, filters, count, level, transposed, stride);
    multiply<Acc<T>>(bins, kTaps,
                     {priors + p.batch * p.bin_offset[level] * stride, rows, transposed, tap_stride(stride), products,
                      kLanes, rows, stride, false});
    for (int64_t q = 0; q < bins; ++q) {
      for (int t = 0; t < kTaps; ++t) {
        const auto product = load(products + t * rows + q * kLanes);
        Acc<T>* to = mixed + (bin_index(p, level, q) * kTaps + t) * p.out_channels;
        count == kLanes ? store(to, product) : store(to, product, count);
      }
    }
  }
}

// The gradient of the priors' channels [r0, r0 + count) of a level, count <= kWide * 16. `grad_mixed` is
// [O, N, S, taps]. Scratch: filter_taps [taps, kWide * 16], sums [N, bins of the level, kWide * 16].
template <class T, int kTaps>
void mix_grad_priors(Constant<kTaps>, const PyramidMixParams& p, const T* weight, const Acc<T>* grad_mixed, int level,
                     int64_t r0, int64_t count, T* grad_priors, Acc<T>* filter_taps, Acc<T>* sums) {
  using A = Acc<T>;
  constexpr int64_t kStride = kWide * kLanes;
  const int64_t bins = bins_of(p, level);
  std::fill_n(sums, bins * kStride, A(0));
  for (int64_t o = 0; o < p.out_channels; ++o) {
    load_filter<T, kTaps>(p, weight + o * p.channels * kTaps, p.first_prior + level * p.reduction + r0, count,
                          filter_taps, kStride);
    const A* grad = grad_mixed + o * p.batch * p.bin_count * kTaps;
    for (int64_t q = 0; q < bins; ++q) {
      const A* taps = grad + bin_index(p, level, q) * kTaps;
      for (int i = 0; i < kWide; ++i) {
        Lanes<A> total = load(sums + q * kStride + i * kLanes);
        for (int t = 0; t < kTaps; ++t) total += taps[t] * load(filter_taps + t * kStride + i * kLanes);
        store(sums + q * kStride + i * kLanes, total);
      }
    }
  }
  for (int64_t q = 0; q < bins; ++q) {
    T* to = grad_priors + bin_index(p, level, q) * p.reduction + r0;
    for (int64_t i = 0; i < count; i += kLanes) {
      store(to + i, load(sums + q * kStride + i), std::min(kLanes, count - i));
    }
  }
}

// The gradient of one filter's channels of the levels. `grad` is the filter's [N, S, taps], `priors` [N, S, stride].
// Scratch: filter_taps [taps, kWide * 16].
template <class T, int kTaps>
void mix_grad_filter(Constant<kTaps>, const PyramidMixParams& p, const Acc<T>* grad, const Acc<T>* priors,
                     int64_t stride, T* filter, Acc<T>* filter_taps) {
  using A = Acc<T>;
  constexpr int64_t kStride = kWide * kLanes;
  for (int level = 0; level < p.levels; ++level) {
    const int64_t bins = bins_of(p, level);
    for (int64_t r = 0; r < p.reduction; r += kStride) {
      Lanes<A> sums[kTaps][kWide] = {};
      for (int64_t q = 0; q < bins; ++q) {
        const int64_t bin = bin_index(p, level, q);
        for (int i = 0; i < kWide; ++i) {
          const Lanes<A> prior = load(priors + bin * stride + r + i * kLanes);
          for (int t = 0; t < kTaps; ++t) sums[t][i] += grad[bin * kTaps + t] * prior;
        }
      }
      for (int t = 0; t < kTaps; ++t) {
        for (int i = 0; i < kWide; ++i) store(filter_taps + t * kStride + i * kLanes, sums[t][i]);
      }
      store_filter<T, kTaps>(p, filter_taps, kStride, p.first_prior + level * p.reduction + r,
                             std::min(kStride, p.reduction - r), filter);
    }
  }
}
