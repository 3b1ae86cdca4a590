// Loops of upsample_loss on one thread, included once per vector level.
#include "upsample.inl"

// The image's rows that read row `source` of its logits, and the row behind it. All pointers but `sums` are the
// image's; `end` is the end of all logits. sums [3]: losses, weights, invalid targets. Scratch: buffer [3, K, 16].
template <class T>
void loss_of_rows(const UpsampleLossParams& p, const AxisSegments<Acc<T>>& rows, const AxisSegments<Acc<T>>& cols,
                  int64_t source, const T* image, const T* end, const int64_t* target, const Acc<T>* weight,
                  double weight_sum, Acc<T>* lse, LabelType label_type, void* labels, int64_t first_label, double* sums,
                  Acc<T>* buffer) {
  using A = Acc<T>;
  const double smooth = p.label_smoothing / p.classes;
  sums[0] = sums[1] = sums[2] = 0;
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const Columns<A> columns(p, cols, first);
    const Between<A> between = expand_between(p, image, end, source, 0, p.classes, columns, buffer);
    for_each_rows(rows.first[source], rows.first[source + 1], [&](int64_t row, auto count) {
      constexpr int R = decltype(count)::value;
      const A* weights = &rows.weight[row];
      Lanes<A> largest[R], sum[R] = {}, weighted[R] = {};
      Lanes<Integer<A>> label[R];
      labels ? find_largest<true>(between, weights, largest, label)
             : find_largest<false>(between, weights, largest, label);
      for (int64_t k = 0; k < p.classes; ++k) {
        for (int r = 0; r < R; ++r) sum[r] += exp_of_negative(between.at(k, weights[r]) - largest[r]);
      }
      if (p.label_smoothing > 0) {
        for (int64_t k = 0; k < p.classes; ++k) {
          const A of_class = weight ? weight[k] : A(1);
          for (int r = 0; r < R; ++r) weighted[r] += of_class * between.at(k, weights[r]);
        }
      }
      for (int r = 0; r < R; ++r) {
        const int64_t pixel = (row + r) * p.width + first;
        if (labels) store_labels(label_type, labels, first_label + pixel, label[r], columns.count);
        for (int64_t i = 0; i < columns.count; ++i) {
          const A of_pixel = largest[r][i] + std::log(sum[r][i]);
          lse[pixel + i] = of_pixel;
          const int64_t t = target[pixel + i];
          if (t == p.ignore_index) continue;
          if (t < 0 || t >= p.classes) {
            sums[2] += 1;
            continue;
          }
          const A value = between.value[t * kLanes + i] + weights[r] * between.step[t * kLanes + i];
          const double of_target = weight ? weight[t] : A(1);
          sums[0] += (1 - p.label_smoothing) * of_target * (of_pixel - value);
          if (smooth > 0) sums[0] += smooth * (of_pixel * weight_sum - weighted[r][i]);
          sums[1] += of_target;
        }
      }
    });
  }
}

// The gradient of classes [first_class, first_class + classes) of an image, without the scale: grad [classes, rows,
// cols], each of which gathers its pixels. `pixels` are the image's, [H, blocks of sixteen columns]. Scratch: buffer
// [3, classes, 16], carry [classes, 16], column_weights [sources of any sixteen columns, 16].
template <bool kSmooth, class T>
void gather_classes(std::bool_constant<kSmooth>, const UpsampleLossParams& p, const AxisSegments<Acc<T>>& rows,
                    const AxisSegments<Acc<T>>& cols, int64_t first_class, int64_t classes, const T* image,
                    const T* end, const PixelBlock<Acc<T>>* pixels, const Acc<T>* weight, Acc<T>* grad, Acc<T>* buffer,
                    Acc<T>* carry, Acc<T>* column_weights) {
  using A = Acc<T>;
  const int64_t blocks = ceil_div(p.width, kLanes);
  std::fill_n(grad, classes * p.rows * p.cols, A(0));
  for (int64_t block = 0; block < blocks; ++block) {
    const Columns<A> columns(p, cols, block * kLanes);
    std::fill_n(column_weights, columns.sources * kLanes, A(0));
    for (int64_t i = 0; i < columns.count; ++i) {
      column_weights[columns.low[i] * kLanes + i] += 1 - columns.weight[i];
      column_weights[columns.high[i] * kLanes + i] += columns.weight[i];
    }
    std::fill_n(carry, classes * kLanes, A(0));
    for (int64_t source = 0; source < p.rows; ++source) {
      const Between<A> between = expand_between(p, image, end, source, first_class, classes, columns, buffer);
      for (int64_t k = 0; k < classes; ++k) {
        const auto own = Lanes<Integer<A>>{} + static_cast<Integer<A>>(first_class + k);
        const A of_class = weight ? weight[first_class + k] : A(1);
        // Of this row of logits, which the rows before have begun, and of the row behind it.
        Lanes<A> here = load(carry + k * kLanes), behind = {};
        for (int64_t row = rows.first[source]; row < rows.first[source + 1]; ++row) {
          const PixelBlock<A>& of_row = pixels[row * blocks + block];
          const Lanes<A> probability = exp_of_negative(between.at(k, rows.weight[row]) - load(of_row.lse));
          const auto is_target = bit_cast<Lanes<Integer<A>>>(of_row.target) == own;
          Lanes<A> g = probability * load(of_row.all) - (is_target ? load(of_row.one) : Lanes<A>{});
          if constexpr (kSmooth) g -= of_class * load(of_row.smooth);
          here += (1 - rows.weight[row]) * g;
          behind += rows.weight[row] * g;
        }
        // Behind the last row of logits lies itself.
        if (source == p.rows - 1) here += behind;
        A* to = grad + (k * p.rows + source) * p.cols + columns.source;
        for (int64_t i = 0; i < columns.sources; ++i) to[i] += sum(here * load(column_weights + i * kLanes));
        store(carry + k * kLanes, behind);
      }
    }
  }
}
