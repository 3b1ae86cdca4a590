// csrc/geometry.h behind a C interface.
#include "../../csrc/geometry.h"

extern "C" {

int64_t bin_begin(int64_t u, int64_t size, int64_t bins) { return pspfast::bin_begin(u, size, bins); }
int64_t bin_end(int64_t u, int64_t size, int64_t bins) { return pspfast::bin_end(u, size, bins); }

// Fills edge[count + 1], and begin and end of every bin; returns count.
int axis_cells(int64_t size, const int32_t* bins, int levels, int32_t* edge, int32_t* begin, int32_t* end) {
  const pspfast::AxisCells cells = pspfast::make_axis_cells(size, bins, levels);
  std::copy_n(cells.edge, cells.count + 1, edge);
  std::copy_n(cells.begin, pspfast::kMaxAxisBins, begin);
  std::copy_n(cells.end, pspfast::kMaxAxisBins, end);
  return cells.count;
}

int nearest_source(int64_t position, int64_t size, int64_t sources) {
  return pspfast::nearest_source(position, size, sources);
}
int first_nearest_position(int32_t source, int32_t size, int32_t sources) {
  return pspfast::first_nearest_position(source, size, sources);
}

// Fills the tap's low and high source, and the weight in both types; returns whether these agree on the sources.
int interpolation_tap(int32_t position, int32_t size, int32_t sources, bool align_corners, int32_t* low, int32_t* high,
                      float* weight, double* double_weight) {
  const auto tap = pspfast::interpolation_tap<float>(position, size, sources, align_corners);
  const auto double_tap = pspfast::interpolation_tap<double>(position, size, sources, align_corners);
  *low = tap.low;
  *high = tap.high;
  *weight = tap.weight;
  *double_weight = double_tap.weight;
  return tap.low == double_tap.low && tap.high == double_tap.high;
}
}
