// The launch of a kernel, and limits of it. A host that runs kernels without a GPU brings its own cuda_runtime_api.h,
// which defines the macros first.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
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
// Two for each of the 132 multiprocessors of an H100: with fewer blocks a launch leaves some idle.
constexpr int64_t kEnoughBlocks = 2 * 132;
// What every launch may use without asking the driver for more.
constexpr int64_t kMaxSharedBytes = 48 * 1024;

// The dynamic shared memory of a block at most, if so many blocks are to reside on a multiprocessor of the current
// device.
inline int64_t shared_bytes_of_block(int blocks) {
  int device = 0, of_multiprocessor = 0, of_block = 0, reserved = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
  return std::min(of_block, of_multiprocessor / blocks - reserved);
}

// Asks the driver for more than kMaxSharedBytes where the kernel needs it.
template <typename Kernel>
void allow_shared_bytes(Kernel* kernel, int64_t bytes) {
  if (bytes > kMaxSharedBytes) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  }
}
// More work than this is taken in a loop over the grid.
constexpr int64_t kMaxGridX = PSPFAST_MAX_GRID_X;

}  // namespace pspfast::cuda
