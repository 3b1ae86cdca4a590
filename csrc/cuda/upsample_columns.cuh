// Pixels by columns: a block takes the rows of an image that lie between two rows of its logits, over a run of columns,
// a column a thread. Of each class a thread reads one cell, for up to R rows of pixels.
#pragma once

#include "upsample.cuh"

namespace pspfast::cuda {

constexpr int kColumnThreads = 128;
constexpr int kColumnWarps = kColumnThreads / kWarpSize;
// Blocks resident on a multiprocessor: so many leave a thread 80 registers. A pixel takes up to five: the weight of its
// row, the largest logit before a chunk and after it, the sum of powers, and a label or a weighted sum.
constexpr int kColumnBlocks = 6;
// With fewer blocks than kEnoughBlocks a block takes fewer columns, down to two warps' worth.
constexpr int kLeastColumns = 2 * kWarpSize;
// Bytes of cells, a block: as many blocks fit into the 164 KB of an sm_80 multiprocessor, and 75 of the 150 classes of
// ADE20K, whose logits have an eighth of the image's resolution, into a block.
constexpr int64_t kColumnCellBytes = 20 * 1024;

// A thread takes many rows of pixels together, all eight between two rows of logits of an eighth of the resolution, or
// few where few lie between them.
constexpr int kManyRows = 8;
constexpr int kFewRows = 2;
inline bool has_many_rows(const UpsampleParams& params) { return params.height > params.rows * kManyRows / 2; }

struct ColumnPlan {
  int64_t tiles, blocks;  // tiles of a row of pixels
  int cols;               // of a tile
  // Cells are those of the tile's columns of logits or, where these are more, one for every column of pixels.
  bool by_column;
  int stride;   // cells between classes; odd, for threads that write a class each to meet different banks
  int classes;  // of a chunk
};

inline ColumnPlan make_column_plan(const UpsampleParams& params) {
  ColumnPlan plan{};
  const int64_t enough =
      std::min(ceil_div(kEnoughBlocks, params.batch * params.rows), ceil_div(params.width, int64_t{kLeastColumns}));
  plan.tiles = std::max(ceil_div(params.width, kColumnThreads), enough);
  plan.blocks = params.batch * params.rows * plan.tiles;
  // Even tiles, made wider where that leaves as many: whole warps write fewer pieces of sectors, and read fewer where a
  // tile begins at a source.
  int64_t cols = ceil_div(params.width, plan.tiles);
  for (int unit = kWarpSize; unit > 1; unit /= 2) {
    const int64_t wider = round_up(cols, unit);
    if (ceil_div(params.width, wider) == plan.tiles) {
      cols = wider;
      break;
    }
  }
  plan.cols = static_cast<int>(cols);
  // Between the tile's first column and its last the source's coordinate grows by this much, rounded down, and its
  // integer part by one more at most.
  const int64_t steps = params.align_corners ? params.cols - 1 : params.cols;
  const int64_t growth = (plan.cols - 1) * steps / std::max<int64_t>(params.width - (params.align_corners ? 1 : 0), 1);
  const int64_t sources = std::min(growth + 2, params.cols);
  plan.by_column = sources > plan.cols;
  plan.stride = static_cast<int>(std::min<int64_t>(sources, plan.cols)) | 1;
  const int64_t most = kColumnCellBytes / (plan.stride * int64_t{sizeof(Cell)});
  plan.classes = static_cast<int>(ceil_div(params.classes, ceil_div(params.classes, most)));
  return plan;
}
static_assert((kColumnThreads + 1) * int64_t{sizeof(Cell)} <= kColumnCellBytes, "one class fits");

// Places in a block's shared memory.
struct ColumnShared {
  Cell* cells;         // [classes of a chunk, stride]
  double* scratch;     // [kColumnWarps]
  float* row_weights;  // [kManyRows]

  __device__ ColumnShared(const ColumnPlan& plan, unsigned char* shared)
      : cells(reinterpret_cast<Cell*>(shared)),
        scratch(reinterpret_cast<double*>(cells + plan.classes * plan.stride)),
        row_weights(reinterpret_cast<float*>(scratch + kColumnWarps)) {}

  static int64_t bytes(const ColumnPlan& plan) {
    return plan.classes * plan.stride * sizeof(Cell) + kColumnWarps * sizeof(double) + kManyRows * sizeof(float);
  }
};
static_assert(kColumnCellBytes + kColumnWarps * sizeof(double) + kManyRows * sizeof(float) <= kMaxSharedBytes);

// A block's pixels, and the thread's among them.
struct ColumnTile {
  int64_t image;
  int source_row, first_row, end_row;
  int first_col, cols, first_source, cells;
  int col;  // the thread's; the last where the tile has fewer
  bool has_col;
  int source_col, cell;
  float col_weight;

  __device__ ColumnTile(const UpsampleParams& params, const ColumnPlan& plan, int64_t block) {
    const int tile = static_cast<int>(block % plan.tiles);
    source_row = static_cast<int>(block / plan.tiles % params.rows);
    image = block / plan.tiles / params.rows;
    first_row = pspfast::cuda::first_row(params, source_row);
    end_row = pspfast::cuda::first_row(params, source_row + 1);
    first_col = tile * plan.cols;
    cols = min(plan.cols, static_cast<int>(params.width) - first_col);
    has_col = static_cast<int>(threadIdx.x) < cols;
    const int within = min(static_cast<int>(threadIdx.x), cols - 1);
    col = first_col + within;
    first_source = col_tap(params, first_col).low;
    cells = plan.by_column ? cols : col_tap(params, first_col + cols - 1).low - first_source + 1;
    const Tap<float> tap = col_tap(params, col);
    source_col = tap.low;
    cell = plan.by_column ? within : source_col - first_source;
    col_weight = tap.weight;
  }

  __device__ int64_t pixel(const UpsampleParams& params, int row) const {
    return (image * params.height + row) * params.width + col;
  }
};

// A chunk of classes at the thread's column and R rows.
template <int R>
struct ColumnChunk {
  int64_t first;
  int classes, stride;
  const Cell* cells;  // the thread's of the first class
  float col_weight;
  float row_weights[R];

  __device__ ColumnLine line(int k) const { return cells[k * stride].at(col_weight); }
  __device__ bool has_nan(int k) const { return is_nan(cells[k * stride].value); }
};

// Calls visit(chunk) for all classes, with R rows from `row` on; the last row is repeated behind itself.
template <int R, typename T, typename Visit>
__device__ inline void for_each_chunk(const UpsampleParams& params, const ColumnPlan& plan, const ColumnTile& tile,
                                      const ImageLogits<T>& logits, int row, const ColumnShared& shared,
                                      const Visit& visit) {
  static_assert(R <= kManyRows);
  for (int64_t first = 0; first < params.classes; first += plan.classes) {
    const int classes = static_cast<int>(min(int64_t{plan.classes}, params.classes - first));
    __syncthreads();
    logits.stage(
        first, classes, tile.source_row, tile.cells, plan.stride,
        [&](int i) { return plan.by_column ? col_tap(params, tile.first_col + i).low : tile.first_source + i; },
        shared.cells);
    if (threadIdx.x < R) {
      shared.row_weights[threadIdx.x] =
          row_tap(params, min(row + static_cast<int>(threadIdx.x), tile.end_row - 1)).weight;
    }
    __syncthreads();
    ColumnChunk<R> chunk{first, classes, plan.stride, shared.cells + tile.cell, tile.col_weight, {}};
#pragma unroll
    for (int r = 0; r < R; ++r) chunk.row_weights[r] = shared.row_weights[r];
    visit(chunk);
  }
}

// The largest logit so far; NaN is not looked at.
template <int R>
__device__ inline void find_largest(const ColumnChunk<R>& chunk, float (&largest)[R]) {
#pragma unroll 2
  for (int k = 0; k < chunk.classes; ++k) {
    const ColumnLine line = chunk.line(k);
#pragma unroll
    for (int r = 0; r < R; ++r) largest[r] = fmaxf(largest[r], line.at(chunk.row_weights[r]));
  }
}

// The same and `label`, the class that torch.argmax gives: the first that has the largest logit, or the complement of
// the first that is NaN. The latter is the same for all rows, which lie between the same logits. An infinite largest
// logit then keeps it: sums of powers of it are NaN whatever the largest is.
template <int R>
__device__ inline void find_labels(const ColumnChunk<R>& chunk, float (&largest)[R], int (&label)[R]) {
  bool has_nan = false;
#pragma unroll 2
  for (int k = 0; k < chunk.classes; ++k) {
    has_nan |= chunk.has_nan(k);
    const ColumnLine line = chunk.line(k);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float value = line.at(chunk.row_weights[r]);
      label[r] = value > largest[r] ? static_cast<int>(chunk.first) + k : label[r];
      largest[r] = fmaxf(largest[r], value);
    }
  }
  if (!has_nan || label[0] < 0) return;
  int k = 0;
  while (!chunk.has_nan(k)) ++k;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    label[r] = ~(static_cast<int>(chunk.first) + k);
    largest[r] = kInfinity;
  }
}

// The class that find_labels means.
__device__ inline int class_of(int label) { return label < 0 ? ~label : label; }

// Takes sums of powers from one largest logit to the next.
template <int R>
__device__ inline void rescale(const float (&before)[R], const float (&largest)[R], float (&sum)[R]) {
#pragma unroll
  for (int r = 0; r < R; ++r) sum[r] *= exp_of_negative(before[r] - largest[r]);
}

template <int R>
__device__ inline void add_powers(const ColumnChunk<R>& chunk, const float (&largest)[R], float (&sum)[R]) {
#pragma unroll 2
  for (int k = 0; k < chunk.classes; ++k) {
    const ColumnLine line = chunk.line(k);
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r] += exp_of_negative(line.at(chunk.row_weights[r]) - largest[r]);
  }
}

}  // namespace pspfast::cuda
