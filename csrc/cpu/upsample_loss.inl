// Loops of upsample_loss on one thread, included once per vector level.
#include "upsample.inl"

// The image's rows that read row `source` of its logits, and the row behind it. sums [3]: losses, weights, invalid
// targets. Scratch: buffer [3, K, 16].
template <class T>
void loss_of_rows(const UpsampleLossParams& p, const AxisSegments<Acc<T>>& rows, const AxisSegments<Acc<T>>& cols,
                  int64_t source, const LossImage<T, Acc<T>>& image, Acc<T>* lse, const LabelOutput& labels,
                  double* sums, Acc<T>* buffer) {
  using A = Acc<T>;
  const double smooth = p.label_smoothing / p.classes;
  sums[0] = sums[1] = sums[2] = 0;
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const Columns<A> columns(p, cols, first);
    const Between<A> between = expand_between(p, image.logits, image.end, source, 0, p.classes, columns, buffer);
    for_each_rows(rows.first[source], rows.first[source + 1], [&](int64_t row, auto count) {
      constexpr int R = decltype(count)::value;
      const A* weights = &rows.weight[row];
      Lanes<A> largest[R], sum[R] = {}, weighted[R] = {};
      Lanes<Integer<A>> label[R];
      labels.data ? find_largest<true>(between, weights, largest, label)
                  : find_largest<false>(between, weights, largest, label);
      for (int64_t k = 0; k < p.classes; ++k) {
        for (int r = 0; r < R; ++r) sum[r] += exp_of_negative(between.at(k, weights[r]) - largest[r]);
      }
      if (p.label_smoothing > 0) {
        for (int64_t k = 0; k < p.classes; ++k) {
          const A of_class = image.weight ? image.weight[k] : A(1);
          for (int r = 0; r < R; ++r) weighted[r] += of_class * between.at(k, weights[r]);
        }
      }
      for (int r = 0; r < R; ++r) {
        const int64_t pixel = (row + r) * p.width + first;
        if (labels.data) store_labels(labels, pixel, label[r], columns.count);
        for (int64_t i = 0; i < columns.count; ++i) {
          const A of_pixel = largest[r][i] + std::log(sum[r][i]);
          lse[pixel + i] = of_pixel;
          const int64_t t = image.target[pixel + i];
          if (t == p.ignore_index) continue;
          if (t < 0 || t >= p.classes) {
            sums[2] += 1;
            continue;
          }
          const A value = between.value[t * kLanes + i] + weights[r] * between.step[t * kLanes + i];
          const double of_target = image.weight ? image.weight[t] : A(1);
          sums[0] += (1 - p.label_smoothing) * of_target * (of_pixel - value);
          if (smooth > 0) sums[0] += smooth * (of_pixel * image.weight_sum - weighted[r][i]);
          sums[1] += of_target;
        }
      }
    });
  }
}

// `count` pixels of a row of the image from `pixel` on, count <= 16.
template <class T, class A>
PSPFAST_INLINE void fill_block(const UpsampleLossParams& p, const LossImage<T, A>& image, const A* lse, int64_t pixel,
                               int64_t count, PixelBlock<A>& block) {
  Lanes<int64_t> targets = Lanes<int64_t>{} + p.ignore_index;
  // Probabilities behind the last column are zero.
  Lanes<A> lses = Lanes<A>{} + std::numeric_limits<A>::max();
  std::memcpy(&targets, image.target + pixel, count * sizeof(int64_t));
  std::memcpy(&lses, lse + pixel, count * sizeof(A));
  const auto counts = targets != p.ignore_index & targets >= 0 & targets < p.classes;
  targets = counts ? targets : Lanes<int64_t>{} - 1;
  const auto label = __builtin_convertvector(targets, Lanes<Integer<A>>);
  Lanes<A> one = {}, smooth = {};
  one += static_cast<A>(1 - p.label_smoothing);
  smooth += static_cast<A>(p.label_smoothing / static_cast<double>(p.classes));
  if (image.weight) {
    for (int64_t i = 0; i < count; ++i) one[i] *= label[i] < 0 ? A(0) : image.weight[label[i]];
  }
  one = label < 0 ? Lanes<A>{} : one;
  smooth = label < 0 ? Lanes<A>{} : smooth;
  store(block.lse, lses);
  store(block.one, one);
  store(block.smooth, smooth);
  store(block.all, one + smooth * image.weight_sum);
  std::memcpy(block.target, &label, sizeof(label));
}

// scratch.grad: the gradient of classes [first_class, first_class + classes) of an image, without the scale. Each of
// the logits gathers its pixels.
template <bool kSmooth, class T>
void gather_classes(std::bool_constant<kSmooth>, const UpsampleLossParams& p, const AxisSegments<Acc<T>>& rows,
                    const AxisSegments<Acc<T>>& cols, int64_t first_class, int64_t classes,
                    const LossImage<T, Acc<T>>& image, const Acc<T>* lse, const GatherScratch<Acc<T>>& scratch) {
  using A = Acc<T>;
  A* const column_weights = scratch.column_weights.get();
  A* const carry = scratch.carry.get();
  std::fill_n(scratch.grad.get(), classes * p.rows * p.cols, A(0));
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const Columns<A> columns(p, cols, first);
    std::fill_n(column_weights, columns.sources * kLanes, A(0));
    for (int64_t i = 0; i < columns.count; ++i) {
      column_weights[columns.low[i] * kLanes + i] += 1 - columns.weight[i];
      column_weights[columns.high[i] * kLanes + i] += columns.weight[i];
    }
    std::fill_n(carry, classes * kLanes, A(0));
    for (int64_t source = 0; source < p.rows; ++source) {
      const int64_t begin = rows.first[source], count = rows.first[source + 1] - begin;
      for (int64_t r = 0; r < count; ++r) {
        fill_block(p, image, lse, (begin + r) * p.width + first, columns.count, scratch.blocks[r]);
      }
      const Between<A> between =
          expand_between(p, image.logits, image.end, source, first_class, classes, columns, scratch.buffer.get());
      for (int64_t k = 0; k < classes; ++k) {
        const auto own = Lanes<Integer<A>>{} + static_cast<Integer<A>>(first_class + k);
        const A of_class = image.weight ? image.weight[first_class + k] : A(1);
        // Of this row of logits, which the rows before have begun, and of the row behind it.
        Lanes<A> here = load(carry + k * kLanes), behind = {};
        for (int64_t r = 0; r < count; ++r) {
          const PixelBlock<A>& of_row = scratch.blocks[r];
          const A row_weight = rows.weight[begin + r];
          const Lanes<A> probability = exp_of_negative(between.at(k, row_weight) - load(of_row.lse));
          const auto is_target = bit_cast<Lanes<Integer<A>>>(of_row.target) == own;
          Lanes<A> g = probability * load(of_row.all) - (is_target ? load(of_row.one) : Lanes<A>{});
          if constexpr (kSmooth) g -= of_class * load(of_row.smooth);
          here += (1 - row_weight) * g;
          behind += row_weight * g;
        }
        // Behind the last row of logits lies itself.
        if (source == p.rows - 1) here += behind;
        A* to = &scratch.grad[(k * p.rows + source) * p.cols + columns.source];
        for (int64_t i = 0; i < columns.sources; ++i) to[i] += sum(here * load(column_weights + i * kLanes));
        store(carry + k * kLanes, behind);
      }
    }
  }
}
