// pyramid_pool on CUDA: both directions touch x once. Every bin is summed, and every gradient gathered, by a fixed
// thread in a fixed order: no atomics, bit-reproducible.
#include <algorithm>

#include "pyramid_pool_channels.cuh"
#include "pyramid_pool_planes.cuh"

namespace pspfast::cuda {
namespace {

dim3 make_grid(int64_t blocks, int bands = 1) {
  return {static_cast<unsigned>(std::min(blocks, kMaxGridX)), static_cast<unsigned>(bands), 1};
}

template <typename T, bool Forward>
void launch_planes(const PyramidPoolParams& params, const T* from, T* to, cudaStream_t stream) {
  const PlanePlan plan = make_plane_plan<T>(params);
  const auto kernel = Forward ? plane_fwd_kernel<T> : plane_bwd_kernel<T>;
  PSPFAST_LAUNCH(kernel, make_grid(params.batch * params.channels), kPlaneThreads, shared_bytes(plan), stream, params,
                 plan, from, to);
}

template <typename T, int Size, bool Forward>
void launch_channels(const PyramidPoolParams& params, const T* from, T* to, cudaStream_t stream) {
  const int bands = Forward ? 1 : params.cells.rows.count;
  const ChannelPlan plan = make_channel_plan<Size>(params, bands, Forward);
  const int64_t bytes = Forward && plan.by_cell ? cell_bytes<Size>(params, plan.lanes) : 0;
  const auto kernel = Forward ? channel_fwd_kernel<T, Size> : channel_bwd_kernel<T, Size>;
  PSPFAST_LAUNCH(kernel, make_grid(params.batch * plan.chunks, bands), kChannelThreads, bytes, stream, params, plan,
                 from, to);
}

template <typename T, bool Forward>
cudaError_t launch(const PyramidPoolParams& params, const void* from, void* to, cudaStream_t stream) {
  const auto* input = static_cast<const T*>(from);
  auto* output = static_cast<T*>(to);
  if (!params.channels_last) {
    launch_planes<T, Forward>(params, input, output, stream);
  } else if (params.channels % kVectorSize<T> == 0 && is_vector_aligned(from) && is_vector_aligned(to)) {
    launch_channels<T, kVectorSize<T>, Forward>(params, input, output, stream);
  } else {
    launch_channels<T, 1, Forward>(params, input, output, stream);
  }
  return cudaGetLastError();
}

template <bool Forward>
cudaError_t dispatch(const PyramidPoolParams& params, const void* from, void* to, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32: return launch<float, Forward>(params, from, to, stream);
    case DType::kFloat16: return launch<__half, Forward>(params, from, to, stream);
    case DType::kBFloat16: return launch<__nv_bfloat16, Forward>(params, from, to, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t pyramid_pool(const PyramidPoolParams& params, const void* x, void* pooled, cudaStream_t stream) {
  return dispatch<true>(params, x, pooled, stream);
}

cudaError_t pyramid_pool_backward(const PyramidPoolParams& params, const void* grad_pooled, void* grad_x,
                                  cudaStream_t stream) {
  return dispatch<false>(params, grad_pooled, grad_x, stream);
}

}  // namespace pspfast::cuda
