// Index maths: bin edges, cells and interpolation taps of the pyramid, tiles of a dilated convolution. Host and device
// compile this same text; no torch header.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef __CUDACC__
#define PSPFAST_HOST_DEVICE __host__ __device__
#else
#define PSPFAST_HOST_DEVICE
#endif

namespace pspfast {

PSPFAST_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
PSPFAST_HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Adaptive pooling, as F.adaptive_avg_pool2d: bin u of `bins` covers [bin_begin, bin_end) of an axis of `size`.
// Neighbouring bins overlap where `bins` does not divide `size`.
PSPFAST_HOST_DEVICE constexpr int64_t bin_begin(int64_t u, int64_t size, int64_t bins) { return u * size / bins; }
PSPFAST_HOST_DEVICE constexpr int64_t bin_end(int64_t u, int64_t size, int64_t bins) {
  return ceil_div((u + 1) * size, bins);
}

// Bilinear interpolation along one axis, as F.interpolate: a position of an axis of `size` is (1 - weight) of source
// `low` and weight of source `high`.
template <class A>
struct Tap {
  int32_t low, high;
  A weight;
};

// Above it products of positions and bins leave int32.
constexpr int64_t kMaxAxisSize = int64_t(1) << 23;

// The source's coordinate is a fraction of integers; only the weight is rounded.
template <class A>
PSPFAST_HOST_DEVICE inline Tap<A> interpolation_tap(int32_t position, int32_t size, int32_t sources,
                                                    bool align_corners) {
  int32_t numerator, denominator;
  if (align_corners) {
    numerator = position * (sources - 1);
    denominator = size > 1 ? size - 1 : 1;
  } else {
    numerator = (2 * position + 1) * sources - size;
    denominator = 2 * size;
  }
  if (numerator <= 0) {
    return {0, sources > 1 ? 1 : 0, A(0)};
  }
  const int32_t low = numerator / denominator;
  const A weight = static_cast<A>(numerator - low * denominator) / static_cast<A>(denominator);
  return {low, low + 1 < sources ? low + 1 : low, weight};
}

// The source that mode "nearest" of F.interpolate takes, rounded as there: in float, whatever the maps' type. (On the
// CPU torch computes the sources of contiguous float64 maps in double, and those of all others in float.)
PSPFAST_HOST_DEVICE inline int32_t nearest_source(int64_t position, int64_t size, int64_t sources) {
  if (size == sources) return static_cast<int32_t>(position);
  if (size == 2 * sources) return static_cast<int32_t>(position / 2);
  const float scale = static_cast<float>(sources) / static_cast<float>(size);
  const auto source = static_cast<int64_t>(static_cast<float>(position) * scale);
  return static_cast<int32_t>(source < sources ? source : sources - 1);
}

// The first position of an axis that reads `source` or a source behind it as its `low` of interpolation_tap, or `size`.
PSPFAST_HOST_DEVICE inline int32_t first_position(int32_t source, int32_t size, int32_t sources, bool align_corners) {
  if (source <= 0) return 0;
  if (source >= sources) return size;
  // The least position whose numerator there is at least `source` denominators. Like there, products fit into 31 bits;
  // the sums here into 32.
  uint32_t numerator, denominator;
  if (align_corners) {
    numerator = static_cast<uint32_t>(source) * (size > 1 ? size - 1 : 1);
    denominator = sources - 1;
  } else {
    numerator = (2u * source + 1) * size;
    denominator = 2u * sources;
    if (numerator <= static_cast<uint32_t>(sources)) return 0;
    numerator -= sources;
  }
  const uint32_t position = (numerator + denominator - 1) / denominator;
  return position < static_cast<uint32_t>(size) ? static_cast<int32_t>(position) : size;
}

// The first position of an axis that reads `source` or a source behind it by nearest_source, or `size`.
PSPFAST_HOST_DEVICE inline int32_t first_nearest_position(int32_t source, int32_t size, int32_t sources) {
  if (source <= 0) return 0;
  if (source >= sources) return size;
  // Exact but for the rounding of nearest_source.
  auto position = static_cast<int32_t>(ceil_div(int64_t{source} * size, sources));
  while (position > 0 && nearest_source(position - 1, size, sources) >= source) --position;
  while (position < size && nearest_source(position, size, sources) < source) ++position;
  return position;
}

constexpr int kMaxLevels = 8;
// Largest sum of `bins` over all levels, that is, bins on one axis; (1,2,3,6) has 12.
constexpr int kMaxAxisBins = 64;

struct PyramidLevels {
  int32_t levels;
  int32_t bins[kMaxLevels];         // b of each level
  int32_t axis_offset[kMaxLevels];  // first bin of a level on one axis: sum of b over the levels before
  int32_t bin_offset[kMaxLevels];   // first bin of a level in [0, S): sum of b * b over the levels before
  int32_t axis_bins, bin_count;     // sums over all levels; bin_count is S
};

// The caller has checked levels <= kMaxLevels, every b >= 1 and sum of b <= kMaxAxisBins.
inline PyramidLevels make_pyramid_levels(const int64_t* bins, int levels) {
  PyramidLevels pyramid{};
  pyramid.levels = levels;
  for (int level = 0; level < levels; ++level) {
    const auto b = static_cast<int32_t>(bins[level]);
    pyramid.bins[level] = b;
    pyramid.axis_offset[level] = pyramid.axis_bins;
    pyramid.bin_offset[level] = pyramid.bin_count;
    pyramid.axis_bins += b;
    pyramid.bin_count += b * b;
  }
  return pyramid;
}

// Every bin has two edges; n distinct edges bound n - 1 cells.
constexpr int kMaxAxisEdges = 2 * kMaxAxisBins;

// One axis cut at every bin edge of every level: a cell lies wholly inside or wholly outside of any bin.
struct AxisCells {
  int32_t count;                // number of cells
  int32_t edge[kMaxAxisEdges];  // cell i covers [edge[i], edge[i + 1])
  int32_t begin[kMaxAxisBins];  // bins of all levels, level after level: bin u is the union of the cells
  int32_t end[kMaxAxisBins];    // [begin[u], end[u])
};

struct PyramidCells : PyramidLevels {
  AxisCells rows, cols;
};

// The number of positions in the bin whose rows are bin u and whose columns are bin v of an axis, both counted over all
// levels as in AxisCells::begin.
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

inline PyramidCells make_pyramid_cells(int64_t height, int64_t width, const PyramidLevels& pyramid) {
  return {pyramid, make_axis_cells(height, pyramid.bins, pyramid.levels),
          make_axis_cells(width, pyramid.bins, pyramid.levels)};
}

// Of a convolution's taps, their number odd, those that lie on an axis of `size` where the middle one is at `position`.
struct TapRange {
  int64_t begin, end;
};

constexpr TapRange taps_inside(int64_t position, int64_t size, int64_t taps, int64_t dilation) {
  const int64_t middle = taps / 2;
  return {std::max<int64_t>(middle - position / dilation, 0),
          std::min(middle + (size - 1 - position) / dilation + 1, taps)};
}

// A convolution dilated by d is an ordinary one on each of the d phases of an axis, the positions phase + i d. Tiles
// are four neighbouring positions of a phase, the last of a phase maybe fewer; they are numbered phase after phase. The
// first size % d phases are one longer than the others.
constexpr int64_t kTileOutputs = 4;

constexpr int64_t tile_count(int64_t size, int64_t dilation) {
  const int64_t shorter = size / dilation, longer_phases = size % dilation;
  return longer_phases * (shorter / kTileOutputs + 1) + (dilation - longer_phases) * ceil_div(shorter, kTileOutputs);
}

// The tile's first position on the axis; its i-th is i * dilation further, if that is less than the size.
constexpr int64_t tile_begin(int64_t tile, int64_t size, int64_t dilation) {
  const int64_t shorter = size / dilation, longer_phases = size % dilation;
  const int64_t in_longer = shorter / kTileOutputs + 1, in_shorter = ceil_div(shorter, kTileOutputs);
  if (tile < longer_phases * in_longer) {
    return tile / in_longer + tile % in_longer * kTileOutputs * dilation;
  }
  tile -= longer_phases * in_longer;
  return longer_phases + tile / in_shorter + tile % in_shorter * kTileOutputs * dilation;
}

}  // namespace pspfast
