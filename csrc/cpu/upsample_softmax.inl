// Loops of upsample_softmax on one thread, included once per instruction set.
#include "exp_log.inl"
#include "upsample.inl"

constexpr int32_t kReversed[kLanes] = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};

// Writes probabilities of the image's rows that read row `source` of its logits and the row behind it. `end` is the end
// of all logits, and `probabilities` points to the image's. Scratch: buffer [4, K, 16].
template <class T>
void softmax_of_rows(const UpsampleParams& p, const SoftmaxOutput& output, const AxisSegments<Acc<T>>& rows,
                     const AxisSegments<Acc<T>>& cols, int64_t source, const T* image, const T* end,
                     Acc<T>* probabilities, Acc<T>* buffer) {
  using A = Acc<T>;
  A* const power = buffer + 3 * p.classes * kLanes;
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const Columns<A> columns(p, cols, first);
    const Between<A> between = expand_between(p, image, end, source, 0, p.classes, columns, buffer);
    for (int64_t row = rows.first[source]; row < rows.first[source + 1]; ++row) {
      // The columns in the output's order.
      const int64_t col = output.flip ? p.width - first - columns.count : first;
      A* const to = probabilities + row * output.row_stride + col * output.col_stride;
      // Classes lie far apart: their memory is asked for before it is needed, where the columns before have not been.
      const A* const far = output.flip ? to : to + (columns.count - 1) * output.col_stride;
      for (int64_t k = 0; k < p.classes; ++k) __builtin_prefetch(far + k * output.class_stride, 1);
      Lanes<A> largest[1], sum = {};
      Lanes<Integer<A>> label[1];
      find_largest<false>(between, &rows.weight[row], largest, label);
      for (int64_t k = 0; k < p.classes; ++k) {
        const Lanes<A> of_class = exp_of_negative(between.at(k, rows.weight[row]) - largest[0]);
        sum += of_class;
        store(power + k * kLanes, of_class);
      }
      const Lanes<A> scale = static_cast<A>(output.weight) / sum;
      for (int64_t k = 0; k < p.classes; ++k) {
        A* const at = to + k * output.class_stride;
        Lanes<A> value = load(power + k * kLanes) * scale;
        if (output.col_stride == 1 && columns.count == kLanes) {
          if (output.flip) value = pick(value, kReversed);
          store(at, output.add ? load(at) + value : value);
          continue;
        }
        const auto values = array_of(value);
        for (int64_t i = 0; i < columns.count; ++i) {
          A& element = at[i * output.col_stride];
          const A v = values[output.flip ? columns.count - 1 - i : i];
          element = output.add ? element + v : v;
        }
      }
    }
  }
}
