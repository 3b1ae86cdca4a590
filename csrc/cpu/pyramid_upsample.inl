// Loops of pyramid_upsample on one thread, included once per vector level. Interpolation is separable: channels_last
// maps combine the sources of a row of the map first, sixteen channels wide, and contiguous maps the sources' columns,
// sixteen pixels wide. Backward takes the same steps in the reverse order.

// Vectors of a pixel, or of a row, that are summed together: a tap is looked up once for all of them.
constexpr int kVectors = 4;

// `row` of a channels_last image for `count` channels from channel `c` of the values on and levels [first, last).
// `map`, `base` and `bias` point to the first of these channels, the former two of the row's first pixel. Scratch:
// combined [sources of the levels, k, stride], stride >= count a multiple of kVectors * 16.
template <class T>
void upsample_row(const PyramidUpsampleParams& p, const AxisTaps<Acc<T>>& rows, const AxisTaps<Acc<T>>& cols,
                  const Acc<T>* values, int64_t row, int first, int last, int64_t c, int64_t count,
                  const Epilogue<T>& epilogue, T* map, Acc<T>* combined, int64_t stride) {
  using A = Acc<T>;
  const int k = p.kernel_size;
  A* source = combined;
  for (int level = first; level < last; ++level) {
    const int b = p.bins[level];
    for (int v = 0; v < b; ++v) {
      for (int kx = 0; kx < k; ++kx, source += stride) {
        for (int64_t i = 0; i < count; i += kLanes) {
          const int64_t lanes = std::min(kLanes, count - i);
          Lanes<A> sum = {};
          for (int ky = 0; ky < k; ++ky) {
            const auto& tap = rows.at(row, level, ky);
            const auto add = [&](int u, A weight) {
              const A* value = values + (((p.bin_offset[level] + u * b + v) * k + ky) * k + kx) * p.channels + c + i;
              sum += weight * (lanes == kLanes ? load(value) : load(value, lanes));
            };
            if (tap.low_weight != 0) add(tap.low, tap.low_weight);
            if (tap.high_weight != 0) add(tap.high, tap.high_weight);
          }
          store(source + i, sum);
        }
      }
    }
  }
  const auto pixel = [&](int64_t col, int64_t i, auto vectors, auto... lanes) {
    constexpr int V = decltype(vectors)::value;
    const int64_t offset = col * p.map_channels + i;
    Lanes<A> sum[V] = {};
    for (int n = 0; n < V; ++n) {
      if (epilogue.base) sum[n] = load(epilogue.base + offset + n * kLanes, lanes...);
      if (epilogue.bias) sum[n] += load(epilogue.bias + i + n * kLanes, lanes...);
    }
    const A* sources = combined + i;
    for (int level = first; level < last; sources += p.bins[level++] * k * stride) {
      for (int kx = 0; kx < k; ++kx) {
        const auto& tap = cols.at(col, level, kx);
        const auto add = [&](int v, A weight) {
          const A* source = sources + (v * k + kx) * stride;
          for (int n = 0; n < V; ++n) sum[n] += weight * load(source + n * kLanes);
        };
        if (tap.low_weight != 0) add(tap.low, tap.low_weight);
        if (tap.high_weight != 0) add(tap.high, tap.high_weight);
      }
    }
    for (int n = 0; n < V; ++n) {
      if (epilogue.relu) sum[n] = relu(sum[n]);
      store(map + offset + n * kLanes, sum[n], lanes...);
    }
  };
  for (int64_t col = 0; col < p.width; ++col) {
    int64_t i = 0;
    for (; i + kVectors * kLanes <= count; i += kVectors * kLanes) pixel(col, i, Constant<kVectors>{});
    for (; i + kLanes <= count; i += kLanes) pixel(col, i, Constant<1>{});
    if (i < count) pixel(col, i, Constant<1>{}, count - i);
  }
}

// The gradient of `count` channels of the levels [first, last) of a channels_last image, whose first pixel's first
// channel `map` points to: grad_values [S, k, k, channels] at channel c. Scratch: combined as above, sums
// [bins of the levels, k, k, stride].
template <class T>
void gather_channels(const PyramidUpsampleParams& p, const AxisTaps<Acc<T>>& rows, const AxisTaps<Acc<T>>& cols,
                     const T* map, int first, int last, int64_t c, int64_t count, Acc<T>* grad_values,
                     Acc<T>* combined, Acc<T>* sums, int64_t stride) {
  using A = Acc<T>;
  const int k = p.kernel_size;
  const int64_t axis_bins = p.axis_offset[last - 1] + p.bins[last - 1] - p.axis_offset[first];
  const int64_t bin_count = p.bin_offset[last - 1] + p.bins[last - 1] * p.bins[last - 1] - p.bin_offset[first];
  std::fill_n(sums, bin_count * k * k * stride, A(0));
  for (int64_t row = 0; row < p.height; ++row) {
    std::fill_n(combined, axis_bins * k * stride, A(0));
    const auto pixel = [&](int64_t col, int64_t i, auto vectors, auto... lanes) {
      constexpr int V = decltype(vectors)::value;
      Lanes<A> grad[V];
      for (int n = 0; n < V; ++n) {
        grad[n] = load(map + (row * p.width + col) * p.map_channels + i + n * kLanes, lanes...);
      }
      A* sources = combined + i;
      for (int level = first; level < last; sources += p.bins[level++] * k * stride) {
        for (int kx = 0; kx < k; ++kx) {
          const auto& tap = cols.at(col, level, kx);
          const auto add = [&](int v, A weight) {
            A* source = sources + (v * k + kx) * stride;
            for (int n = 0; n < V; ++n) {
              store(source + n * kLanes, load(source + n * kLanes) + weight * grad[n]);
            }
          };
          if (tap.low_weight != 0) add(tap.low, tap.low_weight);
          if (tap.high_weight != 0) add(tap.high, tap.high_weight);
        }
      }
    };
    for (int64_t col = 0; col < p.width; ++col) {
      int64_t i = 0;
      for (; i + kVectors * kLanes <= count; i += kVectors * kLanes) pixel(col, i, Constant<kVectors>{});
      for (; i + kLanes <= count; i += kLanes) pixel(col, i, Constant<1>{});
      if (i < count) pixel(col, i, Constant<1>{}, count - i);
    }
    const A* source = combined;
    A* sum = sums;
    for (int level = first; level < last; sum += p.bins[level] * p.bins[level] * k * k * stride, ++level) {
      const int b = p.bins[level];
      for (int v = 0; v < b; ++v) {
        for (int kx = 0; kx < k; ++kx, source += stride) {
          for (int ky = 0; ky < k; ++ky) {
            const auto& tap = rows.at(row, level, ky);
            const auto add = [&](int u, A weight) {
              A* to = sum + (((u * b + v) * k + ky) * k + kx) * stride;
              for (int64_t i = 0; i < count; i += kLanes) store(to + i, load(to + i) + weight * load(source + i));
            };
            if (tap.low_weight != 0) add(tap.low, tap.low_weight);
            if (tap.high_weight != 0) add(tap.high, tap.high_weight);
          }
        }
      }
    }
  }
  A* to = grad_values + int64_t(p.bin_offset[first]) * k * k * p.channels + c;
  for (int64_t value = 0; value < bin_count * k * k; ++value) {
    std::copy_n(sums + value * stride, count, to + value * p.channels);
  }
}

// A contiguous plane of the levels [first, last). `values` is its channel of [S, k, k, channels]. `dense` is
// [sources of all levels, k, stride]: the weight of every column, stride >= W a multiple of 16. Scratch: combined
// [sources of the levels, k, stride].
template <class T>
void upsample_plane(const PyramidUpsampleParams& p, const AxisTaps<Acc<T>>& rows, const Acc<T>* dense,
                    const Acc<T>* values, int first, int last, const Epilogue<T>& epilogue, T* map, Acc<T>* combined,
                    int64_t stride) {
  using A = Acc<T>;
  const int k = p.kernel_size;
  A* source = combined;
  for (int level = first; level < last; ++level) {
    const int b = p.bins[level];
    const A* weights = dense + p.axis_offset[level] * k * stride;
    for (int u = 0; u < b; ++u) {
      const A* value = values + (p.bin_offset[level] + u * b) * k * k * p.channels;
      for (int ky = 0; ky < k; ++ky, source += stride) {
        for (int64_t j = 0; j < stride; j += kLanes) {
          Lanes<A> sum = {};
          for (int v = 0; v < b; ++v) {
            for (int kx = 0; kx < k; ++kx) {
              sum += value[((v * k + ky) * k + kx) * p.channels] * load(weights + (v * k + kx) * stride + j);
            }
          }
          store(source + j, sum);
        }
      }
    }
  }
  const A bias = epilogue.bias ? A(*epilogue.bias) : A(0);
  const auto part = [&](int64_t row, int64_t j, auto vectors, auto... lanes) {
    constexpr int V = decltype(vectors)::value;
    const int64_t offset = row * p.width + j;
    Lanes<A> sum[V];
    for (int n = 0; n < V; ++n) {
      sum[n] = Lanes<A>{} + bias;
      if (epilogue.base) sum[n] += load(epilogue.base + offset + n * kLanes, lanes...);
    }
    const A* sources = combined + j;
    for (int level = first; level < last; sources += p.bins[level++] * k * stride) {
      for (int ky = 0; ky < k; ++ky) {
        const auto& tap = rows.at(row, level, ky);
        const auto add = [&](int u, A weight) {
          const A* from = sources + (u * k + ky) * stride;
          for (int n = 0; n < V; ++n) sum[n] += weight * load(from + n * kLanes);
        };
        if (tap.low_weight != 0) add(tap.low, tap.low_weight);
        if (tap.high_weight != 0) add(tap.high, tap.high_weight);
      }
    }
    for (int n = 0; n < V; ++n) {
      if (epilogue.relu) sum[n] = relu(sum[n]);
      store(map + offset + n * kLanes, sum[n], lanes...);
    }
  };
  for (int64_t row = 0; row < p.height; ++row) {
    int64_t j = 0;
    for (; j + kVectors * kLanes <= p.width; j += kVectors * kLanes) part(row, j, Constant<kVectors>{});
    for (; j + kLanes <= p.width; j += kLanes) part(row, j, Constant<1>{});
    if (j < p.width) part(row, j, Constant<1>{}, p.width - j);
  }
}

// The gradient of a contiguous plane's channel. Arguments as above.
template <class T>
void gather_plane(const PyramidUpsampleParams& p, const AxisTaps<Acc<T>>& rows, const Acc<T>* dense, const T* map,
                  int first, int last, Acc<T>* grad_values, Acc<T>* combined, int64_t stride) {
  using A = Acc<T>;
  const int k = p.kernel_size;
  const int64_t axis_bins = p.axis_offset[last - 1] + p.bins[last - 1] - p.axis_offset[first];
  std::fill_n(combined, axis_bins * k * stride, A(0));
  for (int64_t row = 0; row < p.height; ++row) {
    const auto part = [&](int64_t j, auto vectors, auto... lanes) {
      constexpr int V = decltype(vectors)::value;
      Lanes<A> grad[V];
      for (int n = 0; n < V; ++n) grad[n] = load(map + row * p.width + j + n * kLanes, lanes...);
      A* sources = combined + j;
      for (int level = first; level < last; sources += p.bins[level++] * k * stride) {
        for (int ky = 0; ky < k; ++ky) {
          const auto& tap = rows.at(row, level, ky);
          const auto add = [&](int u, A weight) {
            A* to = sources + (u * k + ky) * stride;
            for (int n = 0; n < V; ++n) store(to + n * kLanes, load(to + n * kLanes) + weight * grad[n]);
          };
          if (tap.low_weight != 0) add(tap.low, tap.low_weight);
          if (tap.high_weight != 0) add(tap.high, tap.high_weight);
        }
      }
    };
    int64_t j = 0;
    for (; j + kVectors * kLanes <= p.width; j += kVectors * kLanes) part(j, Constant<kVectors>{});
    for (; j + kLanes <= p.width; j += kLanes) part(j, Constant<1>{});
    if (j < p.width) part(j, Constant<1>{}, p.width - j);
  }
  const A* source = combined;
  for (int level = first; level < last; ++level) {
    const int b = p.bins[level];
    const A* weights = dense + p.axis_offset[level] * k * stride;
    for (int u = 0; u < b; ++u) {
      A* value = grad_values + (p.bin_offset[level] + u * b) * k * k * p.channels;
      for (int ky = 0; ky < k; ++ky, source += stride) {
        for (int v = 0; v < b; ++v) {
          for (int kx = 0; kx < k; ++kx) {
            Lanes<A> product = {};
            for (int64_t j = 0; j < stride; j += kLanes) {
              product += load(source + j) * load(weights + (v * k + kx) * stride + j);
            }
            value[((v * k + ky) * k + kx) * p.channels] = sum(product);
          }
        }
      }
    }
  }
}
