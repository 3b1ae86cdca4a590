// Mistakes that the emulation has to find, one for each command line argument.
#include <cuda_runtime_api.h>

#include <string>

#include "../../csrc/cuda/launch.h"

namespace {

constexpr int kThreads = 64;

__global__ void reverse(const float* in, float* out, bool with_barrier, int shift) {
  PSPFAST_SHARED(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x + shift] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

__global__ void wait_for_each_other() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void sum_warps(const float* in, float* out) {
  float sum = in[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = sum;
}

__global__ void copy_all_but(const float* in, float* out, int skipped) {
  if (static_cast<int>(threadIdx.x) != skipped) out[threadIdx.x] = in[threadIdx.x];
}

bool is_reversed(const float* out) {
  for (int i = 0; i < kThreads; ++i) {
    if (out[i] != kThreads - 1 - i) return false;
  }
  return true;
}

}  // namespace

// [kThreads]; writes all elements of `out` but one.
extern "C" int copy_all_but_one(const float* in, float* out, int skipped) {
  PSPFAST_LAUNCH(copy_all_but, 1, kThreads, 0, nullptr, in, out, skipped);
  return cudaGetLastError();
}

int main(int, char** arguments) {
  const std::string mode = arguments[1];
  float in[kThreads], out[kThreads];
  for (int i = 0; i < kThreads; ++i) in[i] = i;
  if (mode == "correct") {
    PSPFAST_LAUNCH(reverse, 1, kThreads, sizeof(in), nullptr, in, out, true, 0);
    if (!is_reversed(out)) return 1;
    PSPFAST_LAUNCH(sum_warps, 1, kThreads, 0, nullptr, in, out);
    // 0 + … + 31 and 32 + … + 63
    return out[0] == 496 && out[1] == 1520 ? cudaGetLastError() : 1;
  }
  if (mode == "without_barrier") {
    PSPFAST_LAUNCH(reverse, 1, kThreads, sizeof(in), nullptr, in, out, false, 0);
    // What is read before it is written is NaN.
    return out[0] != out[0] ? 0 : 1;
  }
  if (mode == "out_of_bounds") {
    PSPFAST_LAUNCH(reverse, 1, kThreads, sizeof(in), nullptr, in, out, true, 1);
  } else if (mode == "barrier_not_reached") {
    PSPFAST_LAUNCH(wait_for_each_other, 1, kThreads, 0, nullptr);
    return cudaGetLastError() == cudaErrorLaunchFailure ? 0 : 1;
  } else if (mode == "grid_too_large") {
    PSPFAST_LAUNCH(wait_for_each_other, dim3(1, 65536), kThreads, 0, nullptr);
    return cudaGetLastError() == cudaErrorInvalidConfiguration ? 0 : 1;
  } else if (mode == "empty_grid") {
    PSPFAST_LAUNCH(wait_for_each_other, 0, kThreads, 0, nullptr);
    return cudaGetLastError() == cudaErrorInvalidConfiguration ? 0 : 1;
  }
  return 0;
}
