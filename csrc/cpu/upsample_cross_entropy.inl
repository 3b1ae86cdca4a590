// Loops of upsample_cross_entropy on one thread, included once per instruction set.
#include "exp_log.inl"
#include "upsample.inl"

// What stands for targets that are no classes.
constexpr int32_t kIgnored = -1, kInvalid = -2;

// The targets of `count` pixels from `target` on, count <= 16; the other lanes are ignored.
template <class A>
PSPFAST_INLINE Lanes<Integer<A>> load_target(const UpsampleLossParams& p, const int64_t* target, int64_t count) {
  int64_t padded[kLanes];
  if (count < kLanes) {
    std::fill_n(padded, kLanes, p.ignore_index);
    std::copy_n(target, count, padded);
    target = padded;
  }
  auto lanes = load_vector<Lanes<int64_t>>(target);
  const auto is_ignored = lanes == p.ignore_index, is_class = (lanes >= 0) & (lanes < p.classes);
  lanes = select(is_class, lanes, Lanes<int64_t>{} + kInvalid);
  lanes = select(is_ignored, Lanes<int64_t>{} + kIgnored, lanes);
  return convert<Integer<A>>(lanes);
}

// Fetches sixteen pixels that are soon needed: their rows are too many, or too far apart, for the processor to foresee.
template <class A>
PSPFAST_INLINE void prefetch_pixels(const int64_t* target, const A* lse, int64_t pixel) {
  for (const int64_t i : {int64_t{0}, kLanes / 2, kLanes - 1}) __builtin_prefetch(target + pixel + i);
  for (const int64_t i : {int64_t{0}, kLanes - 1}) __builtin_prefetch(lse + pixel + i);
}

// Computes the loss of the image's rows that read row `source` of its logits and the row behind it. sums [3]: losses,
// weights, invalid targets. Scratch: buffer [3, K, 16].
template <class T>
void loss_of_rows(const UpsampleLossParams& p, const AxisSegments<Acc<T>>& rows, const AxisSegments<Acc<T>>& cols,
                  int64_t source, const LossImage<T, Acc<T>>& image, Acc<T>* lse, const LabelOutput& labels,
                  double* sums, Acc<T>* buffer) {
  using A = Acc<T>;
  const auto of_target = static_cast<A>(1 - p.label_smoothing), of_all = static_cast<A>(p.label_smoothing / p.classes);
  Lanes<double> losses = {}, total_weights = {};
  Lanes<Integer<A>> invalid = {};
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const Columns<A> columns(p, cols, first);
    const Between<A> between = expand_between(p, image.logits, image.end, source, 0, p.classes, columns, buffer);
    for_each_rows(rows.first[source], rows.first[source + 1], [&](int64_t row, auto count) {
      constexpr int R = decltype(count)::value;
      const A* weights = &rows.weight[row];
      for (int r = 0; r < R; ++r) prefetch_pixels(image.target, lse, (row + r) * p.width + first + kLanes);
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
        const Lanes<A> of_pixel = largest[r] + log_of_positive(sum[r]);
        columns.count == kLanes ? store(lse + pixel, of_pixel) : store(lse + pixel, of_pixel, columns.count);
        const auto target = load_target<A>(p, image.target + pixel, columns.count);
        // The first class stands in for what is no target, which is left out below.
        const auto k = select(target >= 0, target, Lanes<Integer<A>>{});
        const auto element = k * kLanes + lane_numbers<Integer<A>>();
        const Lanes<A> value = gather(between.value, element) + weights[r] * gather(between.step, element);
        Lanes<A> weight = image.weight ? gather(image.weight, k) : Lanes<A>{} + 1;
        weight = select(target >= 0, weight, Lanes<A>{});
        Lanes<A> loss = of_target * weight * (of_pixel - value);
        if (of_all > 0) loss += of_all * (of_pixel * image.weight_sum - weighted[r]);
        losses += convert<double>(select(target >= 0, loss, Lanes<A>{}));
        total_weights += convert<double>(weight);
        invalid -= target == kInvalid;
      }
    });
  }
  if (labels.data) label_nan(p, rows, cols, source, image.logits, labels);
  sums[0] = sum(losses);
  sums[1] = sum(total_weights);
  sums[2] = static_cast<double>(sum(invalid));
}

// Fills a block from `count` <= 16 pixels of a row of the image from `pixel` on.
template <bool kPlain, class T, class A>
PSPFAST_INLINE void fill_block(const UpsampleLossParams& p, const LossImage<T, A>& image, const A* lse, int64_t pixel,
                               int64_t count, PixelBlock<A>& block) {
  const auto target = load_target<A>(p, image.target + pixel, count);
  // Probabilities of pixels that do not count, as of those behind the last column, are zero.
  const Lanes<A> lses = count == kLanes ? load(lse + pixel) : load(lse + pixel, count);
  store(block.lse, select(target >= 0, lses, Lanes<A>{} + std::numeric_limits<A>::max()));
  if constexpr (!kPlain) {
    Lanes<A> one = Lanes<A>{} + static_cast<A>(1 - p.label_smoothing);
    Lanes<A> smooth = Lanes<A>{} + static_cast<A>(p.label_smoothing / static_cast<double>(p.classes));
    if (image.weight) one *= gather(image.weight, select(target >= 0, target, Lanes<Integer<A>>{}));
    one = select(target >= 0, one, Lanes<A>{});
    smooth = select(target >= 0, smooth, Lanes<A>{});
    store(block.one, one);
    store(block.smooth, smooth);
    store(block.all, one + smooth * image.weight_sum);
  }
  store(block.target, target);
}

// scratch.grad: the gradient of classes [first_class, first_class + classes) of an image, without the scale. Each of
// the logits gathers its pixels. kPlain: without weights and smoothing.
template <bool kPlain, class T>
void loss_of_classes_backward(std::bool_constant<kPlain>, const UpsampleLossParams& p, const AxisSegments<Acc<T>>& rows,
                              const AxisSegments<Acc<T>>& cols, int64_t first_class, int64_t classes,
                              const LossImage<T, Acc<T>>& image, const Acc<T>* lse,
                              const BackwardScratch<Acc<T>>& scratch) {
  using A = Acc<T>;
  A* const column_weights = scratch.column_weights.get();
  A* const carry = scratch.carry.get();
  std::fill_n(scratch.grad.get(), classes * p.rows * p.cols, A(0));
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const Columns<A> columns(p, cols, first);
    std::fill_n(column_weights, (columns.sources + 3) * kLanes, A(0));
    for (int64_t i = 0; i < columns.count; ++i) {
      column_weights[columns.low[i] * kLanes + i] += 1 - columns.weight[i];
      column_weights[columns.high[i] * kLanes + i] += columns.weight[i];
    }
    std::fill_n(carry, classes * kLanes, A(0));
    for (int64_t source = 0; source < p.rows; ++source) {
      const int64_t begin = rows.first[source], count = rows.first[source + 1] - begin;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t pixel = (begin + r) * p.width + first;
        prefetch_pixels(image.target, lse, pixel + count * p.width);
        fill_block<kPlain>(p, image, lse, pixel, columns.count, scratch.blocks[r]);
      }
      const Between<A> between =
          expand_between(p, image.logits, image.end, source, first_class, classes, columns, scratch.buffer.get());
      for (int64_t k = 0; k < classes; ++k) {
        const auto own = Lanes<Integer<A>>{} + static_cast<Integer<A>>(first_class + k);
        const A of_class = image.weight ? image.weight[first_class + k] : A(1);
        // Sums of gradients for both rows of logits, and for the row behind.
        Lanes<A> both = {}, behind = {};
        for (int64_t r = 0; r < count; ++r) {
          const PixelBlock<A>& of_row = scratch.blocks[r];
          const A row_weight = rows.weight[begin + r];
          Lanes<A> g = exp_of_negative(between.at(k, row_weight) - load(of_row.lse));
          const auto is_target = load_vector<Lanes<Integer<A>>>(of_row.target) == own;
          if constexpr (kPlain) {
            g = select(is_target, g - 1, g);
          } else {
            g = g * load(of_row.all) - select(is_target, load(of_row.one), Lanes<A>{}) - of_class * load(of_row.smooth);
          }
          both += g;
          behind += row_weight * g;
        }
        // The rows before have begun this row.
        Lanes<A> here = load(carry + k * kLanes) + (both - behind);
        // Behind the last row of logits lies itself.
        if (source == p.rows - 1) here += behind;
        A* to = &scratch.grad[(k * p.rows + source) * p.cols + columns.source];
        // Four sources at a time: up to three too many, whose weights are zero.
        for (int64_t i = 0; i < columns.sources; i += 4) {
          const A* const weights = column_weights + i * kLanes;
          VectorOf<A, 4> sums;
          std::memcpy(&sums, to + i, sizeof(sums));
          sums += sum(here * load(weights), here * load(weights + kLanes), here * load(weights + 2 * kLanes),
                      here * load(weights + 3 * kLanes));
          std::memcpy(to + i, &sums, sizeof(sums));
        }
        store(carry + k * kLanes, behind);
      }
    }
  }
}
