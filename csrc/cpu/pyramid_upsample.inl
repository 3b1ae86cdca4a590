// Loops of pyramid_upsample on one thread, included once per instruction set. Interpolation is separable: channels_last
// maps combine the sources of a row of the map first, sixteen channels wide, and contiguous maps the sources' columns,
// sixteen pixels wide. Backward takes the same steps in the reverse order.

// This many vectors are summed together: a tap is looked up once for all of them.
constexpr int kVectors = 4;

// Adds weight * source to sums[n] for all taps of a position. `sources` is [sources, k, stride].
template <class A, int V>
PSPFAST_INLINE void add_taps(Span<SourceTap<A>> taps, const A* sources, int64_t stride, Lanes<A> (&sums)[V]) {
  for (const auto& tap : taps) {
    const A* source = sources + tap.offset * stride;
    for (int n = 0; n < V; ++n) sums[n] += tap.weight * load(source + n * kLanes);
  }
}

// Adds weight * values[n] to the sources of all taps of a position.
template <class A, int V>
PSPFAST_INLINE void add_taps_backward(Span<SourceTap<A>> taps, const Lanes<A> (&values)[V], A* sources,
                                      int64_t stride) {
  for (const auto& tap : taps) {
    A* source = sources + tap.offset * stride;
    for (int n = 0; n < V; ++n) store(source + n * kLanes, load(source + n * kLanes) + tap.weight * values[n]);
  }
}

// Channels of neighbouring pixels are far apart, and the processor does not foresee them: they are fetched this many
// pixels ahead, for the sums to hide the latency of memory.
constexpr int kAhead = 4;

template <int kWrite, class T>
PSPFAST_INLINE void prefetch(const T* pixels, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(pixels + i, kWrite);
}

// Calls f(i, number of vectors, lanes of a partial vector) until [0, count) is covered.
template <class F>
PSPFAST_INLINE void for_each_vector(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kVectors * kLanes <= count; i += kVectors * kLanes) f(i, Constant<kVectors>{});
  for (; i + kLanes <= count; i += kLanes) f(i, Constant<1>{});
  if (i < count) f(i, Constant<1>{}, count - i);
}

// Upsamples `row` of a channels_last image for `count` channels. `map` and the epilogue's pointers point to the first
// of them, in the row's first pixel. `values` is [S, k, k, stride], stride >= count a multiple of kVectors * 16.
// Scratch: combined [sources of the levels, k, stride].
template <class T>
void upsample_row(const PyramidUpsampleParams& p, const AxisTaps<Acc<T>>& rows, const AxisTaps<Acc<T>>& cols,
                  const Acc<T>* values, int64_t row, Levels levels, int64_t count, const Epilogue<T>& epilogue, T* map,
                  Acc<T>* combined, int64_t stride) {
  using A = Acc<T>;
  const int k = p.kernel_size;
  A* source = combined;
  for (int level = levels.first; level < levels.last; ++level) {
    const int b = p.bins[level];
    const auto taps = rows.at(row, {level, level + 1});
    for (int v = 0; v < b; ++v) {
      for (int kx = 0; kx < k; ++kx, source += stride) {
        for (int64_t i = 0; i < count; i += kVectors * kLanes) {
          Lanes<A> sums[kVectors] = {};
          for (const auto& tap : taps) {
            const A* value = values + p.value_index(level, tap.source, v, tap.k, kx) * stride + i;
            for (int n = 0; n < kVectors; ++n) sums[n] += tap.weight * load(value + n * kLanes);
          }
          for (int n = 0; n < kVectors; ++n) store(source + i + n * kLanes, sums[n]);
        }
      }
    }
  }
  const A* sources = combined - p.axis_offset[levels.first] * k * stride;
  for (int64_t col = 0; col < p.width; ++col) {
    const auto taps = cols.at(col, levels);
    if (epilogue.base) prefetch<0>(epilogue.base + (col + kAhead) * p.map_channels, count);
    prefetch<1>(map + (col + kAhead) * p.map_channels, count);
    for_each_vector(count, [&](int64_t i, auto vectors, auto... lanes) {
      constexpr int V = decltype(vectors)::value;
      const int64_t offset = col * p.map_channels + i;
      Lanes<A> sums[V] = {};
      for (int n = 0; n < V; ++n) {
        if (epilogue.base) sums[n] = load(epilogue.base + offset + n * kLanes, lanes...);
        if (epilogue.bias) sums[n] += load(epilogue.bias + i + n * kLanes, lanes...);
      }
      add_taps(taps, sources + i, stride, sums);
      for (int n = 0; n < V; ++n) {
        store(map + offset + n * kLanes, epilogue.relu ? relu(sums[n]) : sums[n], lanes...);
      }
    });
  }
}

// The gradient of `count` channels of a channels_last image, to whose first channel and pixel `map` points: sums [S, k,
// k, stride]. Scratch: combined as above.
template <class T>
void upsample_channels_backward(const PyramidUpsampleParams& p, const AxisTaps<Acc<T>>& rows,
                                const AxisTaps<Acc<T>>& cols, const T* map, Levels levels, int64_t count,
                                Acc<T>* combined, Acc<T>* sums, int64_t stride) {
  using A = Acc<T>;
  const int k = p.kernel_size;
  std::fill(sums + first_value(p, levels.first) * stride, sums + first_value(p, levels.last) * stride, A(0));
  A* const sources = combined - p.axis_offset[levels.first] * k * stride;
  for (int64_t row = 0; row < p.height; ++row) {
    std::fill_n(combined, axis_bins_of(p, levels) * k * stride, A(0));
    for (int64_t col = 0; col < p.width; ++col) {
      const auto taps = cols.at(col, levels);
      prefetch<0>(map + (row * p.width + col + kAhead) * p.map_channels, count);
      for_each_vector(count, [&](int64_t i, auto vectors, auto... lanes) {
        constexpr int V = decltype(vectors)::value;
        Lanes<A> grad[V];
        for (int n = 0; n < V; ++n) {
          grad[n] = load(map + (row * p.width + col) * p.map_channels + i + n * kLanes, lanes...);
        }
        add_taps_backward(taps, grad, sources + i, stride);
      });
    }
    const A* source = combined;
    for (int level = levels.first; level < levels.last; ++level) {
      const auto taps = rows.at(row, {level, level + 1});
      for (int v = 0; v < p.bins[level]; ++v) {
        for (int kx = 0; kx < k; ++kx, source += stride) {
          for (const auto& tap : taps) {
            A* sum = sums + p.value_index(level, tap.source, v, tap.k, kx) * stride;
            for (int64_t i = 0; i < count; i += kLanes) {
              store(sum + i, load(sum + i) + tap.weight * load(source + i));
            }
          }
        }
      }
    }
  }
}

// Upsamples a contiguous plane. `values` [S, k, k, 16] holds its values in one of the sixteen lanes. `weights` is
// [sources of all levels, k, stride], the weight of every column, stride >= W a multiple of kVectors * 16. Scratch:
// combined [sources of the levels, k, stride].
template <class T>
void upsample_plane(const PyramidUpsampleParams& p, const AxisTaps<Acc<T>>& rows, const Acc<T>* weights,
                    const Acc<T>* values, Levels levels, const Epilogue<T>& epilogue, T* map, Acc<T>* combined,
                    int64_t stride) {
  using A = Acc<T>;
  const int k = p.kernel_size;
  A* source = combined;
  for (int level = levels.first; level < levels.last; ++level) {
    for (int u = 0; u < p.bins[level]; ++u) {
      for (int ky = 0; ky < k; ++ky, source += stride) {
        for (int64_t j = 0; j < stride; j += kVectors * kLanes) {
          const A* weight = weights + p.axis_offset[level] * k * stride + j;
          Lanes<A> sums[kVectors] = {};
          for (int v = 0; v < p.bins[level]; ++v) {
            for (int kx = 0; kx < k; ++kx, weight += stride) {
              const A value = values[p.value_index(level, u, v, ky, kx) * kLanes];
              for (int n = 0; n < kVectors; ++n) sums[n] += value * load(weight + n * kLanes);
            }
          }
          for (int n = 0; n < kVectors; ++n) store(source + j + n * kLanes, sums[n]);
        }
      }
    }
  }
  const A bias = epilogue.bias ? A(*epilogue.bias) : A(0);
  const A* sources = combined - p.axis_offset[levels.first] * k * stride;
  for (int64_t row = 0; row < p.height; ++row) {
    const auto taps = rows.at(row, levels);
    for_each_vector(p.width, [&](int64_t j, auto vectors, auto... lanes) {
      constexpr int V = decltype(vectors)::value;
      const int64_t offset = row * p.width + j;
      Lanes<A> sums[V];
      for (int n = 0; n < V; ++n) {
        sums[n] = Lanes<A>{} + bias;
        if (epilogue.base) sums[n] += load(epilogue.base + offset + n * kLanes, lanes...);
      }
      add_taps(taps, sources + j, stride, sums);
      for (int n = 0; n < V; ++n) {
        store(map + offset + n * kLanes, epilogue.relu ? relu(sums[n]) : sums[n], lanes...);
      }
    });
  }
}

// The gradient of a contiguous plane, into one lane of grad_values [S, k, k, 16]. Arguments as above.
template <class T>
void upsample_plane_backward(const PyramidUpsampleParams& p, const AxisTaps<Acc<T>>& rows, const Acc<T>* weights,
                             const T* map, Levels levels, Acc<T>* grad_values, Acc<T>* combined, int64_t stride) {
  using A = Acc<T>;
  const int k = p.kernel_size;
  std::fill_n(combined, axis_bins_of(p, levels) * k * stride, A(0));
  A* const sources = combined - p.axis_offset[levels.first] * k * stride;
  for (int64_t row = 0; row < p.height; ++row) {
    const auto taps = rows.at(row, levels);
    for_each_vector(p.width, [&](int64_t j, auto vectors, auto... lanes) {
      constexpr int V = decltype(vectors)::value;
      Lanes<A> grad[V];
      for (int n = 0; n < V; ++n) grad[n] = load(map + row * p.width + j + n * kLanes, lanes...);
      add_taps_backward(taps, grad, sources + j, stride);
    });
  }
  const A* source = combined;
  for (int level = levels.first; level < levels.last; ++level) {
    for (int u = 0; u < p.bins[level]; ++u) {
      for (int ky = 0; ky < k; ++ky, source += stride) {
        const A* weight = weights + p.axis_offset[level] * k * stride;
        for (int v = 0; v < p.bins[level]; ++v) {
          for (int kx = 0; kx < k; ++kx, weight += stride) {
            Lanes<A> product = {};
            for (int64_t j = 0; j < stride; j += kLanes) product += load(source + j) * load(weight + j);
            grad_values[p.value_index(level, u, v, ky, kx) * kLanes] = sum(product);
          }
        }
      }
    }
  }
}
