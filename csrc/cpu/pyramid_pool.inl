// Loops of pyramid_pool on one thread, included once per instruction set. The step between cells and bins, sixteen
// channels wide, is the same for both memory formats; they differ in how a map is read and written.

// The bins of sixteen channels from their cells: pooled[s] = sum of the bin's cells / its area.
// Cell (i, j) lies at cells + (i * cols.count + j) * cell_stride, bin s at pooled + s * kLanes.
template <class A>
void combine_cells(const PyramidPoolParams& p, const A* cells, int64_t cell_stride, A* pooled) {
  const AxisCells &rows = p.cells.rows, &cols = p.cells.cols;
  for (int level = 0; level < p.cells.levels; ++level) {
    const int b = p.cells.bins[level], axis = p.cells.axis_offset[level];
    for (int u = axis; u < axis + b; ++u) {
      for (int v = axis; v < axis + b; ++v, pooled += kLanes) {
        Lanes<A> sum = {};
        for (int i = rows.begin[u]; i < rows.end[u]; ++i) {
          for (int j = cols.begin[v]; j < cols.end[v]; ++j) {
            sum += load(cells + (i * cols.count + j) * cell_stride);
          }
        }
        store(pooled, sum / static_cast<A>(bin_area(p.cells, u, v)));
      }
    }
  }
}

// The gradient of one row of cells for sixteen channels: every bin that covers a cell hands it grad / area.
// Cell j lies at cells + j * kLanes, bin s at grad + s * kLanes.
template <class A>
void combine_cells_backward(const PyramidPoolParams& p, int row_cell, const A* grad, A* cells) {
  const AxisCells &rows = p.cells.rows, &cols = p.cells.cols;
  std::fill_n(cells, cols.count * kLanes, A(0));
  for (int level = 0; level < p.cells.levels; ++level) {
    const int b = p.cells.bins[level], axis = p.cells.axis_offset[level];
    for (int u = axis; u < axis + b; ++u) {
      if (row_cell < rows.begin[u] || row_cell >= rows.end[u]) {
        continue;
      }
      const A* bin = grad + (p.cells.bin_offset[level] + (u - axis) * b) * kLanes;
      for (int v = axis; v < axis + b; ++v, bin += kLanes) {
        const Lanes<A> of_pixel = load(bin) / static_cast<A>(bin_area(p.cells, u, v));
        for (int j = cols.begin[v]; j < cols.end[v]; ++j) {
          store(cells + j * kLanes, load(cells + j * kLanes) + of_pixel);
        }
      }
    }
  }
}

// Sums the rows [begin, end) of a contiguous plane into `sums` [W].
template <class T>
void sum_rows(const T* plane, int64_t begin, int64_t end, int64_t width, Acc<T>* sums) {
  if (width < kLanes) {
    Lanes<Acc<T>> sum = {};
    for (int64_t row = begin; row < end; ++row) {
      sum += load(plane + row * width, width);
    }
    store(sums, sum, width);
    return;
  }
  for (int64_t w = 0; w < width; w += kLanes) {
    // The last vector overlaps the one before it instead of leaving a tail; both compute the same sums there.
    const int64_t start = std::min(w, width - kLanes);
    Lanes<Acc<T>> sum = {};
    for (int64_t row = begin; row < end; ++row) {
      sum += load(plane + row * width + start);
    }
    store(sums + start, sum);
  }
}

// Pools `lanes` <= 16 contiguous planes of x, one a lane. Scratch: cells [cells, 16], bins [S, 16], sums [W].
template <class T>
void pool_planes(const PyramidPoolParams& p, const T* x, int lanes, T* pooled, Acc<T>* cells, Acc<T>* bins,
                 Acc<T>* sums) {
  const AxisCells &rows = p.cells.rows, &cols = p.cells.cols;
  for (int lane = 0; lane < lanes; ++lane) {
    const T* plane = x + lane * p.height * p.width;
    Acc<T>* cell = cells + lane;
    for (int i = 0; i < rows.count; ++i) {
      sum_rows(plane, rows.edge[i], rows.edge[i + 1], p.width, sums);
      for (int j = 0; j < cols.count; ++j, cell += kLanes) {
        Acc<T> sum = 0;
        for (int w = cols.edge[j]; w < cols.edge[j + 1]; ++w) {
          sum += sums[w];
        }
        *cell = sum;
      }
    }
  }
  combine_cells(p, cells, kLanes, bins);
  for (int lane = 0; lane < lanes; ++lane) {
    for (int s = 0; s < p.cells.bin_count; ++s) {
      *pooled++ = static_cast<T>(bins[s * kLanes + lane]);
    }
  }
}

// The gradient of `lanes` <= 16 contiguous planes. Scratch: bins [S, 16], cells [columns of cells, 16].
template <class T>
void pool_planes_backward(const PyramidPoolParams& p, const T* grad, int lanes, T* grad_x, Acc<T>* bins,
                          Acc<T>* cells) {
  const AxisCells &rows = p.cells.rows, &cols = p.cells.cols;
  for (int lane = 0; lane < lanes; ++lane) {
    for (int s = 0; s < p.cells.bin_count; ++s) {
      bins[s * kLanes + lane] = *grad++;
    }
  }
  for (int i = 0; i < rows.count; ++i) {
    combine_cells_backward(p, i, bins, cells);
    for (int lane = 0; lane < lanes; ++lane) {
      T* first = grad_x + (lane * p.height + rows.edge[i]) * p.width;
      for (int j = 0; j < cols.count; ++j) {
        std::fill(first + cols.edge[j], first + cols.edge[j + 1], static_cast<T>(cells[j * kLanes + lane]));
      }
      for (int row = rows.edge[i] + 1; row < rows.edge[i + 1]; ++row) {
        std::memcpy(first + (row - rows.edge[i]) * p.width, first, p.width * sizeof(T));
      }
    }
  }
}

// Sums one row of cells of a channels_last image for the channels [c0, c1): cells + j * C holds cell j.
template <class T>
void sum_row_of_cells(const PyramidPoolParams& p, const T* image, int row_cell, int64_t c0, int64_t c1, Acc<T>* cells) {
  const AxisCells &rows = p.cells.rows, &cols = p.cells.cols;
  for (int row = rows.edge[row_cell]; row < rows.edge[row_cell + 1]; ++row) {
    const bool first = row == rows.edge[row_cell];
    for (int j = 0; j < cols.count; ++j) {
      const T* pixel = image + (row * p.width + cols.edge[j]) * p.channels;
      const int width = cols.edge[j + 1] - cols.edge[j];
      const auto add = [&](int64_t c, auto... count) {
        Acc<T>* cell = cells + j * p.channels + c;
        Lanes<Acc<T>> sum = {};
        if (!first) {
          sum = load(cell, count...);
        }
        for (int w = 0; w < width; ++w) {
          sum += load(pixel + w * p.channels + c, count...);
        }
        store(cell, sum, count...);
      };
      int64_t c = c0;
      for (; c + kLanes <= c1; c += kLanes) {
        add(c);
      }
      if (c < c1) {
        add(c, c1 - c);
      }
    }
  }
}

// Pools the channels [c, c + lanes) of a channels_last image. `cells` is [cells, C]. Scratch: bins [S, 16], lane_cells
// [cells, 16].
template <class T>
void pool_channels(const PyramidPoolParams& p, const Acc<T>* cells, int64_t c, int64_t lanes, T* pooled, Acc<T>* bins,
                   Acc<T>* lane_cells) {
  if (lanes == kLanes) {
    combine_cells(p, cells + c, p.channels, bins);
  } else {
    const int count = p.cells.rows.count * p.cells.cols.count;
    for (int cell = 0; cell < count; ++cell) {
      store(lane_cells + cell * kLanes, load(cells + cell * p.channels + c, lanes));
    }
    combine_cells(p, lane_cells, kLanes, bins);
  }
  for (int s = 0; s < p.cells.bin_count; ++s) {
    std::transform(bins + s * kLanes, bins + s * kLanes + lanes, pooled + s * p.channels + c,
                   [](Acc<T> bin) { return static_cast<T>(bin); });
  }
}

// The gradient of one row of cells of a channels_last image for the channels [c0, c1). Scratch: bins [S, 16],
// lane_cells [columns of cells, 16], cells [columns of cells, c1 - c0].
template <class T>
void sum_row_of_cells_backward(const PyramidPoolParams& p, const T* grad, int row_cell, int64_t c0, int64_t c1,
                               T* image, Acc<T>* bins, Acc<T>* lane_cells, T* cells) {
  const AxisCells &rows = p.cells.rows, &cols = p.cells.cols;
  const int64_t channels = c1 - c0;
  for (int64_t c = c0; c < c1; c += kLanes) {
    const int64_t lanes = std::min(kLanes, c1 - c);
    for (int s = 0; s < p.cells.bin_count; ++s) {
      store(bins + s * kLanes, load(grad + s * p.channels + c, lanes));
    }
    combine_cells_backward(p, row_cell, bins, lane_cells);
    for (int j = 0; j < cols.count; ++j) {
      store(cells + j * channels + (c - c0), load(lane_cells + j * kLanes), lanes);
    }
  }
  for (int row = rows.edge[row_cell]; row < rows.edge[row_cell + 1]; ++row) {
    for (int j = 0; j < cols.count; ++j) {
      for (int w = cols.edge[j]; w < cols.edge[j + 1]; ++w) {
        std::memcpy(image + (row * p.width + w) * p.channels + c0, cells + j * channels, channels * sizeof(T));
      }
    }
  }
}
