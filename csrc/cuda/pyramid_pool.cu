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

// What is pooled, by the launcher for every format, or handed back.
struct Forward {
  float* cell_sums;

  template <typename T>
  void launch_planes(const PyramidPoolParams& params, const T* x, T* pooled, cudaStream_t stream) const {
    const PlanePlan plan = make_plane_plan<T>(params);
    PSPFAST_LAUNCH(plane_fwd_kernel<T>, make_grid(params.batch * params.channels), kPlaneThreads, shared_bytes(plan),
                   stream, params, plan, x, pooled);
  }

  template <typename T, int Size>
  void launch_channels(const PyramidPoolParams& params, const T* x, T* pooled, cudaStream_t stream) const {
    const ChannelPlan plan = make_fwd_channel_plan<Size>(params);
    const int64_t bytes = plan.bands == 1 ? cell_bytes<Size>(params, plan.lanes) : 0;
    const auto kernel = channel_fwd_kernel<T, Size>;
    PSPFAST_LAUNCH(kernel, make_grid(params.batch * plan.chunks, plan.bands), kChannelThreads, bytes, stream, params,
                   plan, x, cell_sums, pooled);
    if (plan.bands == 1) return;
    const int64_t bins = params.batch * params.cells.bin_count * params.channels;
    PSPFAST_LAUNCH(add_cells_kernel<T>, make_grid(ceil_div(bins, kChannelThreads)), kChannelThreads, 0, stream, params,
                   cell_sums, pooled);
  }
};

struct Backward {
  template <typename T>
  void launch_planes(const PyramidPoolParams& params, const T* grad_pooled, T* grad_x, cudaStream_t stream) const {
    const PlanePlan plan = make_plane_plan<T>(params);
    PSPFAST_LAUNCH(plane_bwd_kernel<T>, make_grid(params.batch * params.channels), kPlaneThreads, shared_bytes(plan),
                   stream, params, plan, grad_pooled, grad_x);
  }

  template <typename T, int Size>
  void launch_channels(const PyramidPoolParams& params, const T* grad_pooled, T* grad_x, cudaStream_t stream) const {
    const ChannelPlan plan = make_bwd_channel_plan<Size>(params);
    const auto kernel = channel_bwd_kernel<T, Size>;
    PSPFAST_LAUNCH(kernel, make_grid(params.batch * plan.chunks, plan.bands), kChannelThreads, 0, stream, params, plan,
                   grad_pooled, grad_x);
  }
};

template <typename T, typename Direction>
cudaError_t launch(const Direction& direction, const PyramidPoolParams& params, const void* from, void* to,
                   cudaStream_t stream) {
  const auto* input = static_cast<const T*>(from);
  auto* output = static_cast<T*>(to);
  if (!params.channels_last) {
    direction.launch_planes(params, input, output, stream);
  } else if (params.channels % kVectorSize<T> == 0 && is_vector_aligned(from) && is_vector_aligned(to)) {
    direction.template launch_channels<T, kVectorSize<T>>(params, input, output, stream);
  } else {
    direction.template launch_channels<T, 1>(params, input, output, stream);
  }
  return cudaGetLastError();
}

template <typename Direction>
cudaError_t dispatch(const Direction& direction, const PyramidPoolParams& params, const void* from, void* to,
                     cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32: return launch<float>(direction, params, from, to, stream);
    case DType::kFloat16: return launch<__half>(direction, params, from, to, stream);
    case DType::kBFloat16: return launch<__nv_bfloat16>(direction, params, from, to, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

int64_t pyramid_pool_sums(const PyramidPoolParams& params) {
  // Whether pointers will be aligned is not known yet.
  const int vector = params.dtype == DType::kFloat32 ? make_fwd_channel_plan<kVectorSize<float>>(params).bands
                                                     : make_fwd_channel_plan<kVectorSize<__half>>(params).bands;
  const bool is_split = params.channels_last && std::max(vector, make_fwd_channel_plan<1>(params).bands) > 1;
  return is_split ? params.batch * params.cells.rows.count * params.cells.cols.count * params.channels : 0;
}

cudaError_t pyramid_pool(const PyramidPoolParams& params, const void* x, float* sums, void* pooled,
                         cudaStream_t stream) {
  return dispatch(Forward{sums}, params, x, pooled, stream);
}

cudaError_t pyramid_pool_backward(const PyramidPoolParams& params, const void* grad_pooled, void* grad_x,
                                  cudaStream_t stream) {
  return dispatch(Backward{}, params, grad_pooled, grad_x, stream);
}

}  // namespace pspfast::cuda
