// Loops for upsample_cross_entropy, upsample_argmax and upsample_softmax, included once per instruction set. Sixteen
// columns of the image are taken together. Two rows of logits are interpolated to these columns first, for all classes;
// rows of the image that lie between the two are then a multiplication and an addition away, wherever they are needed.

template <class A>
using Integer = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

// The columns [first, first + count) of the image, count <= 16, and the sources they read.
template <class A>
struct Columns {
  int64_t first, count;
  int64_t source, sources;            // the first that is read, and how many
  int32_t low[kLanes], high[kLanes];  // the sources of each column, counted from `source`
  A weight[kLanes];                   // the weight of `high`

  Columns(const UpsampleParams& p, const AxisSegments<A>& cols, int64_t first)
      : first(first), count(std::min(kLanes, p.width - first)), source(cols.low[first]) {
    for (int64_t i = 0; i < kLanes; ++i) {
      // Columns behind the last repeat it.
      const int64_t column = first + std::min(i, count - 1);
      low[i] = cols.low[column] - static_cast<int32_t>(source);
      high[i] = static_cast<int32_t>(std::min(source + low[i] + 1, p.cols - 1) - source);
      weight[i] = cols.weight[column];
    }
    sources = high[count - 1] + 1;
  }
};

// Interpolates `row` of an image's classes [k, k + classes) to columns: expanded [classes, 16]. `end` is the end of all
// logits. Scratch: window [classes, 16].
template <class T>
void expand_row(const UpsampleParams& p, const T* image, const T* end, int64_t row, int64_t k, int64_t classes,
                const Columns<Acc<T>>& columns, Acc<T>* expanded, Acc<T>* window) {
  using A = Acc<T>;
  const int64_t class_stride = p.channels_last ? 1 : p.rows * p.cols, col_stride = p.channels_last ? p.classes : 1;
  const T* from = image + k * class_stride + (row * p.cols + columns.source) * col_stride;
  const Lanes<A> weight = load(columns.weight);
  if (columns.sources > kLanes) {
    for (int64_t c = 0; c < classes; ++c, from += class_stride) {
      A low[kLanes], high[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        low[i] = from[columns.low[i] * col_stride];
        high[i] = from[columns.high[i] * col_stride];
      }
      store(expanded + c * kLanes, load(low) + weight * (load(high) - load(low)));
    }
    return;
  }
  if (p.channels_last) {
    for (int64_t i = 0; i < columns.sources; ++i) {
      for (int64_t c = 0; c < classes; ++c) window[c * kLanes + i] = from[i * col_stride + c];
    }
  }
  for (int64_t c = 0; c < classes; ++c, from += class_stride) {
    // Behind the row's end lie other numbers, which are not picked; behind the last row nothing.
    const Lanes<A> sources = p.channels_last        ? load(window + c * kLanes)
                             : end - from >= kLanes ? load(from)
                                                    : load(from, end - from);
    const Lanes<A> low = pick(sources, columns.low);
    store(expanded + c * kLanes, low + weight * (pick(sources, columns.high) - low));
  }
}

// Sixteen columns of all rows between two rows of logits: value + weight * step, [classes, 16] each.
template <class A>
struct Between {
  const A *value, *step;
  int64_t classes;

  Lanes<A> at(int64_t k, A weight) const { return load(value + k * kLanes) + weight * load(step + k * kLanes); }
};

// Interpolates two rows of logits to columns, for rows between them. Scratch: buffer [3, classes, 16].
template <class T>
Between<Acc<T>> expand_between(const UpsampleParams& p, const T* image, const T* end, int64_t row, int64_t k,
                               int64_t classes, const Columns<Acc<T>>& columns, Acc<T>* buffer) {
  Acc<T>*const value = buffer, *const step = value + classes * kLanes, *const window = step + classes * kLanes;
  expand_row(p, image, end, row, k, classes, columns, value, window);
  expand_row(p, image, end, std::min(row + 1, p.rows - 1), k, classes, columns, step, window);
  for (int64_t c = 0; c < classes * kLanes; c += kLanes) store(step + c, load(step + c) - load(value + c));
  return {value, step, classes};
}

// This many rows are taken together, for loads of `value` and `step` to serve all of them.
constexpr int kRows = 4;

// The largest value and the first class that has it; NaN is not looked at.
template <bool kLabels, int R, class A>
PSPFAST_INLINE void find_largest(const Between<A>& between, const A* weights, Lanes<A> (&largest)[R],
                                 Lanes<Integer<A>> (&label)[R]) {
  for (int r = 0; r < R; ++r) {
    const Lanes<A> first = between.at(0, weights[r]);
    largest[r] = select(first == first, first, Lanes<A>{} - std::numeric_limits<A>::infinity());
    label[r] = Lanes<Integer<A>>{};
  }
  for (int64_t k = 1; k < between.classes; ++k) {
    const Lanes<Integer<A>> candidate = Lanes<Integer<A>>{} + static_cast<Integer<A>>(k);
    for (int r = 0; r < R; ++r) {
      const Lanes<A> value = between.at(k, weights[r]);
      if constexpr (kLabels) label[r] = select(value > largest[r], candidate, label[r]);
      largest[r] = select(value > largest[r], value, largest[r]);
    }
  }
}

// Stores the labels of `count` <= 16 pixels from `pixel` on.
template <class V>
PSPFAST_INLINE void store_labels(const LabelOutput& output, int64_t pixel, V label, int64_t count) {
  const auto store_as = [&](auto* labels) __attribute__((always_inline)) {
    using Label = std::remove_pointer_t<decltype(labels)>;
    const auto converted = convert<Label>(label);
    labels += output.first + pixel;
    count == kLanes ? std::memcpy(labels, &converted, sizeof(converted))
                    : std::memcpy(labels, &converted, count * sizeof(Label));
  };
  switch (output.type) {
    case LabelType::kUInt8: return store_as(static_cast<uint8_t*>(output.data));
    case LabelType::kInt32: return store_as(static_cast<int32_t*>(output.data));
    case LabelType::kInt64: return store_as(static_cast<int64_t*>(output.data));
  }
}

// Sets a lane's mask where one of two rows of `count` numbers has a NaN, or infinities whose sum is one.
template <class T>
PSPFAST_INLINE void find_nan(const T* row, const T* other, int64_t count, Lanes<Integer<Acc<T>>>& is_nan) {
  const auto check = [&](int64_t i, auto... lanes) __attribute__((always_inline)) {
    const Lanes<Acc<T>> sum = load(row + i, lanes...) + load(other + i, lanes...);
    is_nan = is_nan | (sum != sum);
  };
  if (count < kLanes) return check(0, count);
  for (int64_t i = 0; i + kLanes < count; i += kLanes) check(i);
  // The last vector may overlap the one before it.
  check(count - kLanes);
}

// Writes the labels of pixels that read a NaN, in the image's rows that read row `source` of its logits and the row
// behind it: the first class that is NaN, as torch.argmax has it. NaN that infinities make of each other is none.
template <class T>
__attribute__((noinline)) void label_nan(const UpsampleParams& p, const AxisSegments<Acc<T>>& rows,
                                         const AxisSegments<Acc<T>>& cols, int64_t source, const T* image,
                                         const LabelOutput& labels) {
  const int64_t behind = std::min(source + 1, p.rows - 1), plane = p.rows * p.cols;
  // A row of logits is one run of memory, or one for each class.
  const int64_t runs = p.channels_last ? 1 : p.classes, size = p.cols * p.classes / runs;
  Lanes<Integer<Acc<T>>> found = {};
  for (int64_t run = 0; run < runs; ++run) {
    find_nan(image + run * plane + source * size, image + run * plane + behind * size, size, found);
  }
  if (!any(found)) return;
  const int64_t class_stride = p.channels_last ? 1 : plane, col_stride = p.channels_last ? p.classes : 1;
  for (int64_t col = 0; col < p.cols; ++col) {
    const int64_t right = std::min(col + 1, p.cols - 1);
    int64_t k = 0;
    const auto is_nan = [&](int64_t row, int64_t col) {
      return std::isnan(static_cast<Acc<T>>(image[row * size + col * col_stride + k * class_stride]));
    };
    while (k < p.classes && !is_nan(source, col) && !is_nan(source, right) && !is_nan(behind, col) &&
           !is_nan(behind, right)) {
      ++k;
    }
    if (k == p.classes) continue;
    const auto label = Lanes<Integer<Acc<T>>>{} + static_cast<Integer<Acc<T>>>(k);
    for (int64_t row = rows.first[source]; row < rows.first[source + 1]; ++row) {
      for (int64_t i = cols.first[col]; i < cols.first[col + 1]; i += kLanes) {
        store_labels(labels, row * p.width + i, label, std::min(cols.first[col + 1] - i, kLanes));
      }
    }
  }
}

// Calls f(first row, Constant<number of rows>) until the rows [begin, end) are covered.
template <class F>
PSPFAST_INLINE void for_each_rows(int64_t begin, int64_t end, const F& f) {
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) f(row, Constant<kRows>{});
  for (; row < end; ++row) f(row, Constant<1>{});
}
