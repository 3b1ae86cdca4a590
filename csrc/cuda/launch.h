// The launch of a kernel, and limits of it. A host that runs kernels without a GPU brings its own cuda_runtime_api.h,
// which defines the macros first.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#ifndef PSPFAST_LAUNCH
#define PSPFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
// Declares `name`, the bytes of dynamic shared memory that the launch asked for, aligned to 16.
#define PSPFAST_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define PSPFAST_MAX_GRID_X 0x7fffffff
#endif

namespace pspfast::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
// What every launch may use without asking the driver for more.
constexpr int64_t kMaxSharedBytes = 48 * 1024;
// More work than this is taken in a loop over the grid.
constexpr int64_t kMaxGridX = PSPFAST_MAX_GRID_X;

}  // namespace pspfast::cuda
