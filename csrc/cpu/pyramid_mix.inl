// Loops of pyramid_mix on one thread, included once per vector level. A filter is the weight of one output channel. Its
// channels of one level are brought into the order [taps, channels] first, in the type of sums.

// Vectors of channels that a backward step takes: with 9 taps their sums, or their weights, fit into 32 registers.
constexpr int kWide = 2;

// [taps, stride] from the channels [first, first + count) of a filter; channels up to the stride are zero.
template <class T, int kTaps>
void unpack_filter(const PyramidMixParams& p, const T* filter, int64_t first, int64_t count, Acc<T>* unpacked,
                   int64_t stride) {
  for (int t = 0; t < kTaps; ++t) {
    for (int64_t r = 0; r < stride; r += kLanes) {
      const int64_t lanes = std::clamp<int64_t>(count - r, 0, kLanes);
      if (p.channels_last) {
        const T* from = filter + t * p.channels + first + r;
        store(unpacked + t * stride + r, lanes == kLanes ? load(from) : load(from, lanes));
        continue;
      }
      T gathered[kLanes] = {};
      for (int64_t i = 0; i < lanes; ++i) gathered[i] = filter[(first + r + i) * kTaps + t];
      store(unpacked + t * stride + r, load(gathered));
    }
  }
}

// The reverse, into the filter.
template <class T, int kTaps>
void pack_filter(const PyramidMixParams& p, const Acc<T>* unpacked, int64_t stride, int64_t first, int64_t count,
                 T* filter) {
  for (int t = 0; t < kTaps; ++t) {
    for (int64_t r = 0; r < count; r += kLanes) {
      const int64_t lanes = std::min(count - r, kLanes);
      T packed[kLanes];
      store(packed, load(unpacked + t * stride + r));
      for (int64_t i = 0; i < lanes; ++i) {
        filter[p.channels_last ? t * p.channels + first + r + i : (first + r + i) * kTaps + t] = packed[i];
      }
    }
  }
}

// The offset of bin q of [N, bins of the level] among [N, S].
inline int64_t bin_index(const PyramidMixParams& p, int level, int64_t q) {
  const int64_t bins = int64_t(p.bins[level]) * p.bins[level];
  return q / bins * p.bin_count + p.bin_offset[level] + q % bins;
}

template <class A, int kTaps, int kBins>
void mix_bins(const PyramidMixParams& p, int level, int64_t q, const A* unpacked, const A* priors, int64_t stride,
              A* mixed) {
  const A* prior[kBins];
  for (int i = 0; i < kBins; ++i) prior[i] = priors + bin_index(p, level, q + i) * stride;
  Lanes<A> sums[kBins][kTaps] = {};
  for (int64_t r = 0; r < stride; r += kLanes) {
    for (int t = 0; t < kTaps; ++t) {
      const Lanes<A> weight = load(unpacked + t * stride + r);
      for (int i = 0; i < kBins; ++i) sums[i][t] += weight * load(prior[i] + r);
    }
  }
  for (int i = 0; i < kBins; ++i) {
    for (int t = 0; t < kTaps; ++t) {
      mixed[(bin_index(p, level, q + i) * kTaps + t) * p.out_channels] = sum(sums[i][t]);
    }
  }
}

// One output channel: `mixed` points to its first element. `priors` is [N, S, stride], zero behind R. Scratch: unpacked
// [taps, stride].
template <class T, int kTaps>
void mix_filter(Constant<kTaps>, const PyramidMixParams& p, const T* filter, const Acc<T>* priors, int64_t stride,
                Acc<T>* mixed, Acc<T>* unpacked) {
  // Three bins times nine taps of sums and a weight fit into 32 registers.
  constexpr int kBins = 3;
  for (int level = 0; level < p.levels; ++level) {
    unpack_filter<T, kTaps>(p, filter, p.first_prior + level * p.reduction, p.reduction, unpacked, stride);
    const int64_t bins = p.batch * p.bins[level] * p.bins[level];
    int64_t q = 0;
    for (; q + kBins <= bins; q += kBins) {
      mix_bins<Acc<T>, kTaps, kBins>(p, level, q, unpacked, priors, stride, mixed);
    }
    for (; q < bins; ++q) mix_bins<Acc<T>, kTaps, 1>(p, level, q, unpacked, priors, stride, mixed);
  }
}

// The gradient of the priors' channels [r0, r0 + count) of a level, count <= kWide * 16. `grad_mixed` is
// [O, N, S, taps]. Scratch: unpacked [taps, kWide * 16], sums [N, bins of the level, kWide * 16].
template <class T, int kTaps>
void mix_grad_priors(Constant<kTaps>, const PyramidMixParams& p, const T* weight, const Acc<T>* grad_mixed, int level,
                     int64_t r0, int64_t count, T* grad_priors, Acc<T>* unpacked, Acc<T>* sums) {
  using A = Acc<T>;
  constexpr int64_t kStride = kWide * kLanes;
  const int64_t bins = p.batch * p.bins[level] * p.bins[level];
  std::fill_n(sums, bins * kStride, A(0));
  for (int64_t o = 0; o < p.out_channels; ++o) {
    unpack_filter<T, kTaps>(p, weight + o * p.channels * kTaps, p.first_prior + level * p.reduction + r0, count,
                            unpacked, kStride);
    const A* grad = grad_mixed + o * p.batch * p.bin_count * kTaps;
    for (int64_t q = 0; q < bins; ++q) {
      const A* taps = grad + bin_index(p, level, q) * kTaps;
      for (int i = 0; i < kWide; ++i) {
        Lanes<A> total = load(sums + q * kStride + i * kLanes);
        for (int t = 0; t < kTaps; ++t) total += taps[t] * load(unpacked + t * kStride + i * kLanes);
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

// The gradient of one filter's channels of the levels. Arguments as above; scratch: unpacked [taps, kWide * 16].
template <class T, int kTaps>
void mix_grad_filter(Constant<kTaps>, const PyramidMixParams& p, const Acc<T>* grad, const Acc<T>* priors,
                     int64_t stride, T* filter, Acc<T>* unpacked) {
  using A = Acc<T>;
  constexpr int64_t kStride = kWide * kLanes;
  for (int level = 0; level < p.levels; ++level) {
    const int64_t bins = p.batch * p.bins[level] * p.bins[level];
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
        for (int i = 0; i < kWide; ++i) store(unpacked + t * kStride + i * kLanes, sums[t][i]);
      }
      pack_filter<T, kTaps>(p, unpacked, kStride, p.first_prior + level * p.reduction + r,
                            std::min(kStride, p.reduction - r), filter);
    }
  }
}
