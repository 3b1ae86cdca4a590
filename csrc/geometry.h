// Index maths of the pyramid: bin edges and cells. Host and device compile this same text; no torch header.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef __CUDACC__
#define PSPFAST_HOST_DEVICE __host__ __device__
#else
#define PSPFAST_HOST_DEVICE
#endif

namespace pspfast {

// Adaptive pooling, as F.adaptive_avg_pool2d: bin u of `bins` covers [bin_begin, bin_end) of an axis of `size`.
// Neighbouring bins overlap where `bins` does not divide `size`.
PSPFAST_HOST_DEVICE constexpr int64_t bin_begin(int64_t u, int64_t size, int64_t bins) { return u * size / bins; }
PSPFAST_HOST_DEVICE constexpr int64_t bin_end(int64_t u, int64_t size, int64_t bins) {
  return ((u + 1) * size + bins - 1) / bins;
}

constexpr int kMaxLevels = 8;
// Largest sum of `bins` over all levels, that is, bins on one axis; (1,2,3,6) has 12.
constexpr int kMaxAxisBins = 64;
// Every bin has two edges; n distinct edges bound n - 1 cells.
constexpr int kMaxAxisEdges = 2 * kMaxAxisBins;

// One axis cut at every bin edge of every level: a cell lies wholly inside or wholly outside of any bin.
struct AxisCells {
  int32_t count;                // number of cells
  int32_t edge[kMaxAxisEdges];  // cell i covers [edge[i], edge[i + 1])
  int32_t begin[kMaxAxisBins];  // bins of all levels, level after level: bin u is the union of the cells
  int32_t end[kMaxAxisBins];    // [begin[u], end[u])
};

struct PyramidCells {
  int32_t levels;
  int32_t bins[kMaxLevels];         // b of each level
  int32_t axis_offset[kMaxLevels];  // first bin of a level in AxisCells::begin: sum of b over the levels before
  int32_t bin_offset[kMaxLevels];   // first bin of a level in [0, S): sum of b * b over the levels before
  int32_t bin_count;                // S
  AxisCells rows, cols;
};

// Positions in the bin of row bin u and column bin v, both counted over all levels as in AxisCells::begin.
PSPFAST_HOST_DEVICE inline int64_t bin_area(const PyramidCells& cells, int u, int v) {
  const AxisCells &rows = cells.rows, &cols = cells.cols;
  return int64_t(rows.edge[rows.end[u]] - rows.edge[rows.begin[u]]) *
         (cols.edge[cols.end[v]] - cols.edge[cols.begin[v]]);
}

inline AxisCells make_axis_cells(int64_t size, const int32_t* bins, int levels) {
  AxisCells cells{};
  int32_t edges[kMaxAxisEdges];
  int count = 0;
  for (int level = 0; level < levels; ++level) {
    for (int64_t u = 0; u < bins[level]; ++u) {
      edges[count++] = static_cast<int32_t>(bin_begin(u, size, bins[level]));
      edges[count++] = static_cast<int32_t>(bin_end(u, size, bins[level]));
    }
  }
  std::sort(edges, edges + count);
  int32_t* const last = std::unique_copy(edges, edges + count, cells.edge);
  cells.count = static_cast<int32_t>(last - cells.edge) - 1;
  int bin = 0;
  for (int level = 0; level < levels; ++level) {
    for (int64_t u = 0; u < bins[level]; ++u, ++bin) {
      const auto cell_at = [&](int64_t position) {
        return static_cast<int32_t>(std::lower_bound(cells.edge, last, static_cast<int32_t>(position)) - cells.edge);
      };
      cells.begin[bin] = cell_at(bin_begin(u, size, bins[level]));
      cells.end[bin] = cell_at(bin_end(u, size, bins[level]));
    }
  }
  return cells;
}

// The caller has checked levels <= kMaxLevels, every b >= 1 and sum of b <= kMaxAxisBins.
inline PyramidCells make_pyramid_cells(int64_t height, int64_t width, const int64_t* bins, int levels) {
  PyramidCells cells{};
  cells.levels = levels;
  int32_t axis = 0;
  for (int level = 0; level < levels; ++level) {
    const auto b = static_cast<int32_t>(bins[level]);
    cells.bins[level] = b;
    cells.axis_offset[level] = axis;
    cells.bin_offset[level] = cells.bin_count;
    axis += b;
    cells.bin_count += b * b;
  }
  cells.rows = make_axis_cells(height, cells.bins, levels);
  cells.cols = make_axis_cells(width, cells.bins, levels);
  return cells;
}

}  // namespace pspfast
