// CUDA's vocabulary on the host: g++ compiles the project's .cu files with this header in place of the toolkit's, and
// a launch runs them to the end, block after block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define PSPFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  emulation::launch(emulation::address_of(kernel), [&] { kernel(__VA_ARGS__); }, grid, block, shared_bytes, stream)
#if defined(EMULATION_LAST_BLOCK) || defined(EMULATION_WHOLE_GRID)
#define PSPFAST_MAX_GRID_X 0x7fffffff
#else
// So small that the loops over a grid which real sizes never enter run too.
#define PSPFAST_MAX_GRID_X 3
#endif
#define PSPFAST_SHARED(name) unsigned char* const name = emulation::shared_memory()

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using std::max;
using std::min;

namespace emulation {

// threadIdx and its like: read through a function that thread sanitizer does not watch.
template <typename Read>
struct Coordinates {
  template <unsigned dim3::* Member>
  struct Coordinate {
    EMULATION_HIDDEN operator unsigned() const { return Read{}().*Member; }
  };
  Coordinate<&dim3::x> x;
  Coordinate<&dim3::y> y;
  Coordinate<&dim3::z> z;
};
struct ReadThread {
  EMULATION_HIDDEN dim3 operator()() const { return current->running->thread; }
};
struct ReadBlock {
  EMULATION_HIDDEN dim3 operator()() const { return current->block_index; }
};
struct ReadBlockSize {
  EMULATION_HIDDEN dim3 operator()() const { return current->block; }
};
struct ReadGridSize {
  EMULATION_HIDDEN dim3 operator()() const { return current->grid; }
};

}  // namespace emulation

inline constexpr emulation::Coordinates<emulation::ReadThread> threadIdx{};
inline constexpr emulation::Coordinates<emulation::ReadBlock> blockIdx{};
inline constexpr emulation::Coordinates<emulation::ReadBlockSize> blockDim{};
inline constexpr emulation::Coordinates<emulation::ReadGridSize> gridDim{};

enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrReservedSharedMemoryPerBlock
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  using emulation::kReservedBytes, emulation::kSharedBytes;
  *value = attribute == cudaDevAttrMaxSharedMemoryPerMultiprocessor ? kSharedBytes
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin   ? kSharedBytes - kReservedBytes
                                                                    : kReservedBytes;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulation::kSharedBytes - emulation::kReservedBytes) return cudaErrorInvalidConfiguration;
  emulation::allowed_shared_bytes[emulation::address_of(kernel)] = bytes;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

inline void __stwb(uint4* to, uint4 value) { *to = value; }

inline void __syncthreads() { emulation::suspend(emulation::State::kAtBlockBarrier); }

inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::suspend(emulation::State::kAtWarpBarrier, mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  emulation::exchange(bits);
  __syncwarp(mask);
  bits = emulation::exchanged_by(lane % emulation::kWarpSize);
  __syncwarp(mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  return __shfl_sync(mask, value, emulation::running_lane() ^ static_cast<unsigned>(offset));
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset) {
  const unsigned lane = emulation::running_lane() + offset;
  return __shfl_sync(mask, value, lane < emulation::kWarpSize ? lane : emulation::running_lane());
}
