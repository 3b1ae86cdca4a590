// The CUDA launchers of pyramid_pool behind a C interface, on the emulation.
#include "../../csrc/cuda/pyramid_pool.cu"

extern "C" int pyramid_pool(int64_t batch, int64_t channels, int64_t height, int64_t width, bool channels_last,
                            int dtype, const int64_t* bins, int levels, bool backward, const void* from, void* to) {
  const pspfast::PyramidPoolParams params{
      batch,
      channels,
      height,
      width,
      channels_last,
      static_cast<pspfast::DType>(dtype),
      pspfast::make_pyramid_cells(height, width, pspfast::make_pyramid_levels(bins, levels))};
  if (backward) return pspfast::cuda::pyramid_pool_backward(params, from, to, nullptr);
  emulation::Sums sums(pspfast::cuda::pyramid_pool_sums(params));
  return pspfast::cuda::pyramid_pool(params, from, sums.data(), to, nullptr);
}
