// Loops of upsample_argmax on one thread, included once per instruction set.
#include "upsample.inl"

// Labels the image's rows that read row `source` of its logits and the row behind it. `end` is the end of all logits.
// Scratch: buffer [3, K, 16].
template <class T>
void argmax_of_rows(const UpsampleParams& p, const AxisSegments<Acc<T>>& rows, const AxisSegments<Acc<T>>& cols,
                    int64_t source, const T* image, const T* end, const LabelOutput& labels, Acc<T>* buffer) {
  using A = Acc<T>;
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const Columns<A> columns(p, cols, first);
    const Between<A> between = expand_between(p, image, end, source, 0, p.classes, columns, buffer);
    for_each_rows(rows.first[source], rows.first[source + 1], [&](int64_t row, auto count) {
      constexpr int R = decltype(count)::value;
      Lanes<A> largest[R];
      Lanes<Integer<A>> label[R];
      find_largest<true>(between, &rows.weight[row], largest, label);
      for (int r = 0; r < R; ++r) {
        store_labels(labels, (row + r) * p.width + first, label[r], columns.count);
      }
    });
  }
  label_nan(p, rows, cols, source, image, labels);
}
