// The loop of dilated_conv2d's epilogue, included once per instruction set.

template <class T>
void add_relu_row(const T* residual, T* out, int64_t count, bool with_relu) {
  const auto sum = [&](Lanes<Acc<T>> v, Lanes<Acc<T>> added) { return with_relu ? relu(v + added) : v + added; };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(out + i, sum(load(out + i), residual ? load(residual + i) : Lanes<Acc<T>>{}));
  }
  if (const int64_t rest = count - i; rest > 0) {
    store(out + i, sum(load(out + i, rest), residual ? load(residual + i, rest) : Lanes<Acc<T>>{}), rest);
  }
}
