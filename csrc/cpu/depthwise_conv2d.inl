// Loops of depthwise_conv2d on one thread, included once per instruction set.

// One row of an image's result, `out`, in the channels from `first` to `last`. `constants` are the bias and the
// filters, [1 + k * k, padded], with zeros in the padding.
template <class T>
void convolve_row(const DepthwiseConv2dParams& p, const T* image, const Acc<T>* constants, int64_t padded, int64_t row,
                  int64_t first, int64_t last, T* out) {
  const TapRange rows = taps_inside(row, p.height, p.kernel_size, p.dilation);
  for (int64_t col = 0; col < p.width; ++col) {
    const TapRange cols = taps_inside(col, p.width, p.kernel_size, p.dilation);
    // Of the first tap, which may lie outside.
    const int64_t corner = ((row - p.reach()) * p.width + col - p.reach()) * p.channels;
    for (int64_t c = first; c < last; c += kLanes) {
      const int64_t lanes = p.channels - c;
      Lanes<Acc<T>> sum = load(constants + c);
      for (int64_t ky = rows.begin; ky < rows.end; ++ky) {
        for (int64_t kx = cols.begin; kx < cols.end; ++kx) {
          const int64_t i = corner + (ky * p.width + kx) * p.dilation * p.channels + c;
          sum += load_some(image + i, lanes) * load(constants + (1 + ky * p.kernel_size + kx) * padded + c);
        }
      }
      store_some(out + col * p.channels + c, p.relu ? relu(sum) : sum, lanes);
    }
  }
}
