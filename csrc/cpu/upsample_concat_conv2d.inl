// Loops of upsample_concat_conv2d on one thread, included once per instruction set. Sixteen output channels, a block,
// lie together; a run is a row of some positions of a block, [positions, 16].
#include "matmul.inl"

// This many vectors are summed together: a tap is looked up once for all of them.
constexpr int kVectors = 4;

// Calls f(i, number of vectors, lanes of a partial vector) until [0, count) is covered.
template <class F>
PSPFAST_INLINE void for_each_vector(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kVectors * kLanes <= count; i += kVectors * kLanes) f(i, Constant<kVectors>{});
  for (; i + kLanes <= count; i += kLanes) f(i, Constant<1>{});
  if (i < count) f(i, Constant<1>{}, count - i);
}

// Copies positions [positions, channels] to [channels / 16, positions, 16] in the type of sums, zero behind the last
// channel.
template <class T>
void pack_positions(const T* from, int64_t positions, int64_t channels, Acc<T>* packed) {
  for (int64_t m = 0; m < positions; ++m, from += channels) {
    Acc<T>* to = packed + m * kLanes;
    for (int64_t c = 0; c < channels; c += kLanes, to += positions * kLanes) {
      store(to, channels - c >= kLanes ? load(from + c) : load(from + c, channels - c));
    }
  }
}

// Copies them back.
template <class T>
void unpack_positions(const Acc<T>* packed, int64_t positions, int64_t channels, T* to) {
  for (int64_t m = 0; m < positions; ++m, to += channels) {
    const Acc<T>* from = packed + m * kLanes;
    for (int64_t c = 0; c < channels; c += kLanes, from += positions * kLanes) {
      channels - c >= kLanes ? store(to + c, load(from)) : store(to + c, load(from), channels - c);
    }
  }
}

// Packs a block of `outs` <= 16 filters as right factor of the products by a map: [taps, depth, 16], zero behind the
// last channel and filter. The elements of a filter are read in the order of memory, sixteen channels of all taps at a
// time: lines of several filters often fall into one set of the cache.
template <class T>
void pack_filters(const StridedWeight<const T>& weight, int64_t outs, int64_t channels, int64_t depth, Acc<T>* packed) {
  std::fill_n(packed, (channels % kLanes || outs < kLanes) * weight.taps * depth * kLanes, Acc<T>(0));
  for (int64_t begin = 0; begin < channels; begin += kLanes) {
    const int64_t end = std::min(begin + kLanes, channels);
    for (int64_t o = 0; o < outs; ++o) {
      for (int64_t t = 0; t < weight.taps; ++t) {
        const T* from = weight.data + o * weight.out_stride + t * weight.tap_stride;
        Acc<T>* to = packed + t * depth * kLanes + o;
        for (int64_t c = begin; c < end; ++c) to[c * kLanes] = from[c * weight.in_stride];
      }
    }
  }
}

// Packs the same block as rows of the right factor of the products by a gradient: in each block of sixteen channels,
// whose distance is `block_stride`, [taps, 16 filters, 16 channels].
template <class T>
void pack_filters_transposed(const StridedWeight<const T>& weight, int64_t outs, int64_t channels, int64_t block_stride,
                             Acc<T>* packed) {
  for (int64_t o = 0; o < kLanes; ++o) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t lanes = std::min(kLanes, channels - c);
      for (int64_t t = 0; t < weight.taps; ++t) {
        const T* from = weight.data + o * weight.out_stride + c * weight.in_stride + t * weight.tap_stride;
        Acc<T>* to = packed + c / kLanes * block_stride + (t * kLanes + o) * kLanes;
        for (int64_t i = 0; i < kLanes; ++i) to[i] = o < outs && i < lanes ? Acc<T>(from[i * weight.in_stride]) : 0;
      }
    }
  }
}

// Writes the gradient of a block of filters from rows [taps, 16 filters], sixteen channels each, in blocks of channels
// whose distance is `block_stride`.
template <class A>
void unpack_grad_filters(const A* packed, int64_t block_stride, int64_t outs, int64_t channels,
                         const StridedWeight<A>& weight) {
  for (int64_t o = 0; o < outs; ++o) {
    for (int64_t c = 0; c < channels; ++c) {
      const A* from = packed + c / kLanes * block_stride + o * kLanes + c % kLanes;
      A* to = weight.data + o * weight.out_stride + c * weight.in_stride;
      for (int64_t t = 0; t < weight.taps; ++t) to[t * weight.tap_stride] = from[t * kLanes * kLanes];
    }
  }
}

// to = the sum of weight * run over all terms, `size` elements, a multiple of 16. Without terms it is zero.
template <class A>
void sum_runs(std::span<const Term<A>> terms, int64_t size, A* to) {
  for_each_vector(size, [&](int64_t i, auto vectors, auto...) {
    constexpr int V = decltype(vectors)::value;
    Lanes<A> sums[V] = {};
    for (const auto& term : terms) {
      for (int n = 0; n < V; ++n) sums[n] += term.weight * load(term.run + i + n * kLanes);
    }
    for (int n = 0; n < V; ++n) store(to + i + n * kLanes, sums[n]);
  });
}

// Adds to a row of the output, from the channel on that `out` and `bias` point to, what is interpolated between the
// columns of each map's mixed row; `add` tells whether the row holds something already.
template <class T>
void write_row(const UpsampleConcatConv2dParams& p, std::span<const MixedRow<Acc<T>>> maps, int64_t channels, bool add,
               const T* bias, bool relu_after, T* out) {
  using A = Acc<T>;
  for (int64_t col = 0; col < p.width; ++col, out += p.out_channels) {
    for_each_vector(channels, [&](int64_t i, auto vectors, auto... lanes) {
      constexpr int V = decltype(vectors)::value;
      Lanes<A> sums[V] = {};
      for (int n = 0; n < V; ++n) {
        if (add) sums[n] = load(out + i + n * kLanes, lanes...);
        if (bias) sums[n] += load(bias + i + n * kLanes, lanes...);
      }
      for (const auto& map : maps) {
        for (const auto& tap : map.cols->of_position(col)) {
          const A* from = map.data + tap.k * map.tap_stride + i / kLanes * map.block_stride + tap.source * kLanes;
          for (int n = 0; n < V; ++n) sums[n] += tap.weight * load(from + n * map.block_stride);
        }
      }
      for (int n = 0; n < V; ++n) {
        store(out + i + n * kLanes, relu_after ? relu(sums[n]) : sums[n], lanes...);
      }
    });
  }
}

// Gathers a row of the output's gradient, from the channel on that `grad` points to, into a map's columns: runs of
// `sources` columns for each tap and block of channels.
template <class T>
void gather_row(const UpsampleConcatConv2dParams& p, const AxisTaps<Acc<T>>& cols, int64_t sources, int64_t channels,
                const T* grad, Acc<T>* gathered, int64_t tap_stride, int64_t block_stride) {
  using A = Acc<T>;
  for (int64_t source = 0; source < sources; ++source) {
    for (int k = 0; k < p.kernel_size; ++k) {
      const auto taps = cols.of_source(source, k);
      A* to = gathered + k * tap_stride + source * kLanes;
      for_each_vector(channels, [&](int64_t i, auto vectors, auto... lanes) {
        constexpr int V = decltype(vectors)::value;
        Lanes<A> sums[V] = {};
        for (const auto& tap : taps) {
          const T* from = grad + tap.position * p.out_channels + i;
          for (int n = 0; n < V; ++n) sums[n] += tap.weight * load(from + n * kLanes, lanes...);
        }
        for (int n = 0; n < V; ++n) store(to + (i / kLanes + n) * block_stride, sums[n]);
      });
    }
  }
}
