// pyramid_pool: schema, checks, allocation, choice of the CPU or CUDA kernel.
#include "pyramid_pool.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "dispatch.h"

namespace pspfast {
namespace {

PyramidPoolParams make_params(const char* op, int64_t batch, int64_t channels, int64_t height, int64_t width,
                              at::IntArrayRef bins, bool channels_last, DType dtype) {
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, op, ": x: expected H and W of at least 1, got ", height, " and ", width);
  const PyramidLevels pyramid = check_bins(op, bins);
  return {batch, channels, height, width, channels_last, dtype, make_pyramid_cells(height, width, pyramid)};
}

at::Tensor empty_pooled(const PyramidPoolParams& p, const at::TensorOptions& options) {
  return p.channels_last ? at::empty({p.batch, p.cells.bin_count, p.channels}, options).transpose(1, 2)
                         : at::empty({p.batch, p.channels, p.cells.bin_count}, options);
}

at::Tensor pyramid_pool(const at::Tensor& x, at::IntArrayRef bins) {
  constexpr auto op = "pyramid_pool";
  const DType dtype = check_map(op, "x", x);
  const bool channels_last = is_channels_last(x);
  const auto params = make_params(op, x.size(0), x.size(1), x.size(2), x.size(3), bins, channels_last, dtype);
  const at::Tensor dense = channels_last ? x : x.contiguous();
  at::Tensor pooled = empty_pooled(params, x.options());
  if (pooled.numel() == 0) {
    return pooled;
  }
  PSPFAST_RUN(x, pyramid_pool, params, dense.const_data_ptr(), pooled.mutable_data_ptr());
  return pooled;
}

at::Tensor pyramid_pool_backward(const at::Tensor& grad, at::IntArrayRef bins, int64_t height, int64_t width,
                                 bool channels_last) {
  constexpr auto op = "pyramid_pool_backward";
  TORCH_CHECK_VALUE(grad.dim() == 3, op, ": grad: expected [N, C, S], got shape ", grad.sizes());
  const DType dtype = check_dtype(op, "grad", grad);
  const auto params = make_params(op, grad.size(0), grad.size(1), height, width, bins, channels_last, dtype);
  TORCH_CHECK_VALUE(grad.size(2) == params.cells.bin_count, op, ": grad: expected S = ", params.cells.bin_count,
                    " bins, got ", grad.size(2));
  const at::Tensor dense = channels_last ? grad.transpose(1, 2).contiguous() : grad.contiguous();
  at::Tensor grad_x = at::empty({params.batch, params.channels, height, width}, grad.options(),
                                channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  if (grad_x.numel() == 0) {
    return grad_x;
  }
  PSPFAST_RUN(grad, pyramid_pool_backward, params, dense.const_data_ptr(), grad_x.mutable_data_ptr());
  return grad_x;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("pyramid_pool(Tensor x, int[] bins) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("pyramid_pool_backward(Tensor grad, int[] bins, SymInt height, SymInt width, bool channels_last) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("pyramid_pool", &pyramid_pool);
  m.impl("pyramid_pool_backward", &pyramid_pool_backward);
}

}  // namespace pspfast
