// csrc/geometry.h behind a C interface.
#include "../../../csrc/geometry.h"

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
}
