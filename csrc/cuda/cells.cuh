// Look-ups in PyramidCells on the device.
#pragma once

#include "../geometry.h"

namespace pspfast::cuda {

__device__ inline int cell_at(const AxisCells& axis, int position) {
  int cell = 0;
  while (axis.edge[cell + 1] <= position) ++cell;
  return cell;
}

__device__ inline bool covers(const AxisCells& axis, int bin, int cell) {
  return axis.begin[bin] <= cell && cell < axis.end[bin];
}

// A bin: its level, and its rows and columns as indices into AxisCells::begin and end.
struct Bin {
  int level, row, col;
};

__device__ inline Bin bin_at(const PyramidCells& cells, int s) {
  int level = 0;
  while (level + 1 < cells.levels && s >= cells.bin_offset[level + 1]) ++level;
  const int within = s - cells.bin_offset[level];
  const int first = cells.axis_offset[level];
  return {level, first + within / cells.bins[level], first + within % cells.bins[level]};
}

__device__ inline float area_of(const PyramidCells& cells, int row, int col) {
  return static_cast<float>(bin_area(cells, row, col));
}

}  // namespace pspfast::cuda
