// Included before a file beside it: CUDA's launchers then note their launches, and run nothing.
#pragma once

#ifndef EMULATION_LAST_BLOCK
// A grid as large as on a GPU.
#define EMULATION_LAST_BLOCK
#endif
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <vector>

struct NotedLaunch {
  int64_t kernel;  // from the library's begin
  int64_t blocks, threads, shared_bytes;
};

inline std::vector<NotedLaunch> noted_launches;

template <typename Kernel>
void note_launch(Kernel* kernel, dim3 grid, dim3 block, int64_t shared_bytes) {
  auto* const address = reinterpret_cast<char*>(kernel);
  Dl_info library;
  dladdr(address, &library);
  noted_launches.push_back({address - static_cast<char*>(library.dli_fbase), int64_t{grid.x} * grid.y * grid.z,
                            int64_t{block.x} * block.y * block.z, shared_bytes});
}

// Fills `launches` and returns how many there were since the last call, at most `room` of them.
extern "C" __attribute__((used)) inline int64_t take_launches(NotedLaunch* launches, int64_t room) {
  const int64_t count = std::min<int64_t>(room, noted_launches.size());
  std::copy_n(noted_launches.begin(), count, launches);
  noted_launches.clear();
  return count;
}

#undef PSPFAST_LAUNCH
#define PSPFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) note_launch(kernel, grid, block, shared_bytes)
