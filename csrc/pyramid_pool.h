// pyramid_pool: what the CPU and CUDA kernels are given. No torch header, so that nvcc compiles little and the
// kernels can be compiled without torch.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "geometry.h"

#ifdef PSPFAST_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace pspfast {

// A map [N, C, H, W] is dense: contiguous (element (n, c, h, w) at ((n C + c) H + h) W + w) or channels_last
// (at ((n H + h) W + w) C + c). The pooled tensor [N, C, S] follows it: at (n C + c) S + s or (n S + s) C + c.
struct PyramidPoolParams {
  int64_t batch, channels, height, width;
  bool channels_last;
  DType dtype;
  PyramidCells cells;
};

namespace cpu {
// Needs no `sums`, which has a GPU's room for those of cells.
void pyramid_pool(const PyramidPoolParams& params, const void* x /* [N, C, H, W] */, float* sums,
                  void* pooled /* [N, C, S] */);
inline int64_t pyramid_pool_sums(const PyramidPoolParams&) { return 0; }
void pyramid_pool_backward(const PyramidPoolParams& params, const void* grad_pooled /* [N, C, S] */,
                           void* grad_x /* [N, C, H, W] */);
}  // namespace cpu

#ifdef PSPFAST_WITH_CUDA
// Both enqueue on `stream` and return the launch's error; float64 is not served.
namespace cuda {
// `sums` are as many floats as pyramid_pool_sums says.
cudaError_t pyramid_pool(const PyramidPoolParams& params, const void* x /* [N, C, H, W] */, float* sums,
                         void* pooled /* [N, C, S] */, cudaStream_t stream);
int64_t pyramid_pool_sums(const PyramidPoolParams& params);
cudaError_t pyramid_pool_backward(const PyramidPoolParams& params, const void* grad_pooled /* [N, C, S] */,
                                  void* grad_x /* [N, C, H, W] */, cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace pspfast
