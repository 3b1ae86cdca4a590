// Loops of winograd_* on one thread, included once per instruction set. Names of the transforms are Lavin and Gray's
// (arXiv 1509.09308 §4.3): the outputs of a row of six inputs d and three taps g are A^T ((G g) * (B^T d)), products
// being taken one by one.
#include "matmul.inl"

// Interpolation points are 0, a, -a, b, -b and infinity. With the usual 1 and 2 for a and b the error is twice as
// large, and its largest values five times: powers of the points are farther apart.
constexpr float kA = 0.70710678f, kB = 1.41421356f;  // Their squares are 1/2 and 2.

struct InputTransform {  // B^T, 6x6
  static constexpr int kFrom = 6, kTo = 6;
  template <class V>
  PSPFAST_INLINE void apply(const V* d, V* to) {
    const V even_a = d[4] - 2.f * d[2], odd_a = kA * (d[3] - 2.f * d[1]);
    const V even_b = d[4] - 0.5f * d[2], odd_b = kB * (d[3] - 0.5f * d[1]);
    to[0] = d[0] - 2.5f * d[2] + d[4];
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
    to[5] = d[1] - 2.5f * d[3] + d[5];
  }
};

struct WeightTransform {  // G, 6x3
  static constexpr int kFrom = 3, kTo = 6;
  template <class V>
  PSPFAST_INLINE void apply(const V* g, V* to) {
    const V even_a = (g[0] + 0.5f * g[2]) * (-2.f / 3), odd_a = g[1] * (-2.f / 3 * kA);
    const V even_b = (g[0] + 2.f * g[2]) * (1.f / 6), odd_b = g[1] * (1.f / 6 * kB);
    to[0] = g[0];
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
    to[5] = g[2];
  }
};

struct OutputTransform {  // A^T, 4x6
  static constexpr int kFrom = 6, kTo = 4;
  template <class V>
  PSPFAST_INLINE void apply(const V* m, V* to) {
    const V even_a = m[1] + m[2], odd_a = kA * (m[1] - m[2]), even_b = m[3] + m[4], odd_b = kB * (m[3] - m[4]);
    to[0] = m[0] + even_a + even_b;
    to[1] = odd_a + odd_b;
    to[2] = 0.5f * even_a + 2.f * even_b;
    to[3] = 0.5f * odd_a + 2.f * odd_b + m[5];
  }
};

struct GradOutputTransform {  // A, 6x4
  static constexpr int kFrom = 4, kTo = 6;
  template <class V>
  PSPFAST_INLINE void apply(const V* y, V* to) {
    const V even_a = y[0] + 0.5f * y[2], odd_a = kA * (y[1] + 0.5f * y[3]);
    const V even_b = y[0] + 2.f * y[2], odd_b = kB * (y[1] + 2.f * y[3]);
    to[0] = y[0];
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
    to[5] = y[3];
  }
};

struct GradWeightTransform {  // G^T, 3x6
  static constexpr int kFrom = 6, kTo = 3;
  template <class V>
  PSPFAST_INLINE void apply(const V* m, V* to) {
    const V even_a = (m[1] + m[2]) * (-2.f / 3), even_b = (m[3] + m[4]) * (1.f / 6);
    to[0] = m[0] + even_a + even_b;
    to[1] = (m[1] - m[2]) * (-2.f / 3 * kA) + (m[3] - m[4]) * (1.f / 6 * kB);
    to[2] = 0.5f * even_a + 2.f * even_b + m[5];
  }
};

// Both axes: element (i, j) is read by from(i, j) and given to to(i, j, value).
template <class Transform, class From, class To>
PSPFAST_INLINE void transform(const From& from, const To& to) {
  Lanes<float> half[Transform::kTo][Transform::kFrom];
  for (int j = 0; j < Transform::kFrom; ++j) {
    Lanes<float> column[Transform::kFrom], transformed[Transform::kTo];
    for (int i = 0; i < Transform::kFrom; ++i) column[i] = from(i, j);
    Transform::apply(column, transformed);
    for (int i = 0; i < Transform::kTo; ++i) half[i][j] = transformed[i];
  }
  for (int i = 0; i < Transform::kTo; ++i) {
    Lanes<float> row[Transform::kTo];
    Transform::apply(half[i], row);
    for (int j = 0; j < Transform::kTo; ++j) to(i, j, row[j]);
  }
}

// Tiles whose transformed tensors of 256 channels take half a megabyte, in whole steps of the product.
inline int64_t few_tiles() { return 14 / kMatmulRows * kMatmulRows; }

// The map in which a tile lies, and the position of its first output.
struct Tile {
  int64_t image, row, col;
};

inline Tile find_tile(const WinogradParams& p, int64_t tile) {
  const int64_t rows = p.tile_rows(), cols = p.tile_cols();
  return {tile / (rows * cols), tile_begin(tile / cols % rows, p.height, p.dilation),
          tile_begin(tile % cols, p.width, p.dilation)};
}

// Transforms the channels [channel, channel + 16 blocks) of a tile's pixels, from pixel kFirst on (-1: with the pixels
// before the tile), and stores them at to[block * block_stride + position * position_stride]. Outside the map and
// behind the last channel is zero.
template <class Transform, int kFirst, class T>
void transform_tile(const WinogradParams& p, const T* map, int64_t channels, int64_t tile, int64_t channel,
                    int64_t blocks, float* to, int64_t block_stride, int64_t position_stride) {
  constexpr int kSize = Transform::kFrom;
  const Tile at = find_tile(p, tile);
  const T* image = map + at.image * p.height * p.width * channels + channel;
  const T* pixel[kSize][kSize];
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) {
      const int64_t y = at.row + (i + kFirst) * p.dilation, x = at.col + (j + kFirst) * p.dilation;
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      pixel[i][j] = inside ? image + (y * p.width + x) * channels : nullptr;
    }
  }
  const auto all = [&](const auto& read, int64_t block) {
    transform<Transform>(
        [&](int i, int j) { return pixel[i][j] ? read(pixel[i][j] + block * kLanes) : Lanes<float>{}; },
        [&](int i, int j, Lanes<float> v) {
          store(to + block * block_stride + (i * Transform::kTo + j) * position_stride, v);
        });
  };
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t lanes = channels - channel - block * kLanes;
    lanes >= kLanes ? all([](const T* at) { return load(at); }, block)
                    : all([=](const T* at) { return load(at, lanes); }, block);
  }
}

template <class T>
void transform_input(const WinogradParams& p, const T* x, int64_t tile, int64_t channel, int64_t blocks, float* to,
                     int64_t block_stride, int64_t position_stride) {
  transform_tile<InputTransform, -1>(p, x, p.in_channels, tile, channel, blocks, to, block_stride, position_stride);
}

template <class T>
void transform_grad_output(const WinogradParams& p, const T* grad, int64_t tile, int64_t channel, int64_t blocks,
                           float* to, int64_t block_stride, int64_t position_stride) {
  transform_tile<GradOutputTransform, 0>(p, grad, p.out_channels, tile, channel, blocks, to, block_stride,
                                         position_stride);
}

// Transforms products of the channels [channel, channel + 16 blocks), in memory as transform_tile stores, to a tile of
// the output.
template <class T>
void transform_output(const WinogradParams& p, const float* products, int64_t tile, int64_t channel, int64_t blocks,
                      int64_t block_stride, int64_t position_stride, const WinogradEpilogue& epilogue, T* out) {
  const Tile at = find_tile(p, tile);
  const auto residual = static_cast<const T*>(epilogue.residual);
  for (int64_t block = 0; block < blocks; ++block, channel += kLanes) {
    const int64_t lanes = std::min(p.out_channels - channel, kLanes);
    const Lanes<float> bias =
        epilogue.bias ? load(static_cast<const T*>(epilogue.bias) + channel, lanes) : Lanes<float>{};
    transform<OutputTransform>(
        [&](int i, int j) { return load(products + block * block_stride + (i * kTileInputs + j) * position_stride); },
        [&](int i, int j, Lanes<float> v) {
          const int64_t y = at.row + i * p.dilation, x = at.col + j * p.dilation;
          if (y >= p.height || x >= p.width) return;
          const int64_t index = ((at.image * p.height + y) * p.width + x) * p.out_channels + channel;
          v += bias;
          if (residual) v += lanes == kLanes ? load(residual + index) : load(residual + index, lanes);
          if (epilogue.relu) v = relu(v);
          lanes == kLanes ? store(out + index, v) : store(out + index, v, lanes);
        });
  }
}

// Transforms one input channel of sixteen filters, a lane each; `weight` points to the first filter's, and filters
// behind `lanes` are zero.
template <class T>
void transform_weight(const T* weight, int64_t lane_stride, int64_t tap_stride, bool reversed, int64_t lanes, float* to,
                      int64_t position_stride) {
  float taps[9][kLanes] = {};
  for (int t = 0; t < 9; ++t) {
    const T* tap = weight + (reversed ? 8 - t : t) * tap_stride;
    for (int64_t i = 0; i < lanes; ++i) taps[t][i] = tap[i * lane_stride];
  }
  transform<WeightTransform>(
      [&](int i, int j) { return load(taps[3 * i + j]); },
      [&](int i, int j, Lanes<float> v) { store(to + (i * kTileInputs + j) * position_stride, v); });
}

// Transforms one input channel's products of sixteen output channels to the gradient of their weights, of the first
// `lanes` of them.
inline void transform_grad_weight(const float* products, int64_t position_stride, bool add, int64_t lane_stride,
                                  int64_t tap_stride, int64_t lanes, float* grad_weight) {
  transform<GradWeightTransform>([&](int i, int j) { return load(products + (i * kTileInputs + j) * position_stride); },
                                 [&](int i, int j, Lanes<float> v) {
                                   float* to = grad_weight + (3 * i + j) * tap_stride;
                                   const auto gradient = array_of(v);
                                   for (int64_t lane = 0; lane < lanes; ++lane) {
                                     to[lane * lane_stride] =
                                         add ? to[lane * lane_stride] + gradient[lane] : gradient[lane];
                                   }
                                 });
}
