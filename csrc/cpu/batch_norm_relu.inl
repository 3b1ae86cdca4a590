// Loops of batch_norm_relu on one thread over some rows of channels, included once per instruction set. Arrays of sums
// and of constants are padded with zeros to whole vectors.

template <class A>
PSPFAST_INLINE void add_to(A* sum, Lanes<A> v) {
  store(sum, load(sum) + v);
}

template <class A>
PSPFAST_INLINE Lanes<double> to_double(const A* p) {
  return convert<double>(load(p));
}

// Joins moments, the means and the sums of squared deviations from them, of `more` rows to those of `count` rows (Chan,
// Golub and LeVeque 1979).
template <class A>
void join_moments(double count, double* mean, double* deviations, double more, const A* more_mean,
                  const A* more_deviations, int64_t channels) {
  const double fraction = more / (count + more);
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Lanes<double> before = load(mean + c), delta = to_double(more_mean + c) - before;
    store(mean + c, before + delta * fraction);
    store(deviations + c, load(deviations + c) + to_double(more_deviations + c) + delta * delta * (count * fraction));
  }
}

// Moments of a few rows, which stay in the cache for the second pass.
template <class T>
void row_moments(const T* x, int64_t rows, int64_t channels, Acc<T>* mean, Acc<T>* deviations) {
  const int64_t padded = round_up(channels, kLanes);
  std::fill_n(mean, padded, Acc<T>(0));
  std::fill_n(deviations, padded, Acc<T>(0));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; c += kLanes) add_to(mean + c, load_some(x + row * channels + c, channels - c));
  }
  for (int64_t c = 0; c < channels; c += kLanes) store(mean + c, load(mean + c) / Acc<T>(rows));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Lanes<Acc<T>> delta = load_some(x + row * channels + c, channels - c) - load(mean + c);
      add_to(deviations + c, delta * delta);
    }
  }
}

template <class T>
using Rows = BatchNormRows<T, Acc<T>>;

template <class T>
PSPFAST_INLINE Lanes<Acc<T>> normalized(const Rows<T>& in, int64_t i, int64_t c, int64_t lanes) {
  Lanes<Acc<T>> v = (load_some(in.x + i, lanes) - load(in.mean + c)) * load(in.scale + c) + load(in.bias + c);
  if (in.residual) v += load_some(in.residual + i, lanes);
  return v;
}

template <class T>
void normalize_rows(const Rows<T>& in, int64_t rows, int64_t channels, bool with_relu, T* out) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t i = row * channels + c, lanes = channels - c;
      const Lanes<Acc<T>> v = normalized(in, i, c, lanes);
      store_some(out + i, with_relu ? relu(v) : v, lanes);
    }
  }
}

// The gradient behind the ReLU. Where the ReLU's input is NaN it is passed on, as torch does.
template <class T>
PSPFAST_INLINE Lanes<Acc<T>> behind_relu(const Rows<T>& in, const T* grad, int64_t i, int64_t c, int64_t lanes) {
  return select(normalized(in, i, c, lanes) <= 0, Lanes<Acc<T>>{}, load_some(grad + i, lanes));
}

// Adds the sums of g and of g * (x - mean), and writes g to grad_residual, if there is one.
template <class T>
void sum_gradients(const Rows<T>& in, const T* grad, int64_t rows, int64_t channels, bool with_relu, T* grad_residual,
                   Acc<T>* sums, Acc<T>* products) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t i = row * channels + c, lanes = channels - c;
      const Lanes<Acc<T>> g = with_relu ? behind_relu(in, grad, i, c, lanes) : load_some(grad + i, lanes);
      if (grad_residual) store_some(grad_residual + i, g, lanes);
      add_to(sums + c, g);
      add_to(products + c, g * (load_some(in.x + i, lanes) - load(in.mean + c)));
    }
  }
}

// scale * (g - mean_gradient - (x - mean) * slope)
template <class T>
void input_gradients(const Rows<T>& in, const T* grad, int64_t rows, int64_t channels, bool with_relu,
                     const Acc<T>* mean_gradient, const Acc<T>* slope, T* grad_x) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t i = row * channels + c, lanes = channels - c;
      const Lanes<Acc<T>> g = with_relu ? behind_relu(in, grad, i, c, lanes) : load_some(grad + i, lanes);
      const Lanes<Acc<T>> delta = load_some(in.x + i, lanes) - load(in.mean + c);
      store_some(grad_x + i, load(in.scale + c) * (g - load(mean_gradient + c) - delta * load(slope + c)), lanes);
    }
  }
}
