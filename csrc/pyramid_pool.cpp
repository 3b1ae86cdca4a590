// pyramid_pool: schema, checks, allocation, choice of the CPU or CUDA kernel.
#include "pyramid_pool.h"

#include "checks.h"
#include "dispatch.h"

namespace pspfast {
namespace {

PyramidPoolParams make_params(const char* op, int64_t batch, int64_t channels, int64_t height, int64_t width,
                              const Ints& bins, bool channels_last, DType dtype) {
  PSPFAST_CHECK(height >= 1 && width >= 1, op, ": x: expected H and W of at least 1, got ", height, " and ", width);
  const PyramidLevels pyramid = check_bins(op, bins);
  return {batch, channels, height, width, channels_last, dtype, make_pyramid_cells(height, width, pyramid)};
}

// In memory [N, S, C] for a channels_last map.
Tensor empty_pooled(const PyramidPoolParams& p, const Tensor& x) {
  const int64_t bins = p.cells.bin_count, channels = std::max<int64_t>(p.channels, 1);
  const std::array<int64_t, 3> shape = {p.batch, p.channels, bins};
  const std::array<int64_t, 3> strides = {channels * bins, p.channels_last ? 1 : bins, p.channels_last ? channels : 1};
  return new_strided(shape, strides.data(), x.scalar_type(), x);
}

Tensor pyramid_pool(const Tensor& x, const Ints& bins) {
  constexpr auto op = "pyramid_pool";
  const DType dtype = check_map(op, "x", x);
  const bool channels_last = is_channels_last(x);
  const auto params = make_params(op, x.size(0), x.size(1), x.size(2), x.size(3), bins, channels_last, dtype);
  const Tensor map = dense(x), pooled = empty_pooled(params, x);
  if (pooled.numel() == 0) {
    return pooled;
  }
  const Tensor sums = new_tensor({PSPFAST_ASK(x, pyramid_pool_sums, params)}, ScalarType::Float, x);
  PSPFAST_RUN(x, pyramid_pool, params, map.const_data_ptr(), static_cast<float*>(sums.mutable_data_ptr()),
              pooled.mutable_data_ptr());
  return pooled;
}

Tensor pyramid_pool_backward(const Tensor& grad, const Ints& bins, int64_t height, int64_t width, bool channels_last) {
  constexpr auto op = "pyramid_pool_backward";
  PSPFAST_CHECK(grad.dim() == 3, op, ": grad: expected [N, C, S], got shape ", grad.sizes());
  const DType dtype = check_dtype(op, "grad", grad);
  const auto params = make_params(op, grad.size(0), grad.size(1), height, width, bins, channels_last, dtype);
  PSPFAST_CHECK(grad.size(2) == params.cells.bin_count, op, ": grad: expected S = ", params.cells.bin_count,
                " bins, got ", grad.size(2));
  const Tensor pooled = in_format(channels_last ? torch::stable::transpose(grad, 1, 2) : grad);
  const Tensor grad_x = new_tensor({params.batch, params.channels, height, width}, grad.scalar_type(), grad,
                                   channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  if (grad_x.numel() == 0) {
    return grad_x;
  }
  PSPFAST_RUN(grad, pyramid_pool_backward, params, pooled.const_data_ptr(), grad_x.mutable_data_ptr());
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("pyramid_pool(Tensor x, int[] bins) -> Tensor");
  m.def("pyramid_pool_backward(Tensor grad, int[] bins, SymInt height, SymInt width, bool channels_last) -> Tensor");
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("pyramid_pool", TORCH_BOX(&pyramid_pool));
  m.impl("pyramid_pool_backward", TORCH_BOX(&pyramid_pool_backward));
}

}  // namespace pspfast
