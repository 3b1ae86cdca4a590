// The two things about a launch that plain C++ cannot say. A host that runs kernels without a GPU brings its own
// cuda_runtime_api.h, which defines them first.
#pragma once

#include <cuda_runtime_api.h>

#ifndef PSPFAST_LAUNCH
#define PSPFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
// Declares `name`, the bytes of dynamic shared memory that the launch asked for, aligned to 16.
#define PSPFAST_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace pspfast::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
// What every launch may use without asking the driver for more.
constexpr int64_t kMaxSharedBytes = 48 * 1024;
constexpr int64_t kMaxGridX = 0x7fffffff;

}  // namespace pspfast::cuda
