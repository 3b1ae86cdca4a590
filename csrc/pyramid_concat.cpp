// pyramid_concat: schema, checks, allocation, choice of the CPU or CUDA kernel.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "checks.h"
#include "dispatch.h"
#include "pyramid_upsample.h"

namespace pspfast {
namespace {

PyramidUpsampleParams make_params(const at::Tensor& map, int64_t channels, const PyramidLevels& pyramid,
                                  bool align_corners, DType dtype) {
  const int64_t upsampled = pyramid.levels * channels;
  return {pyramid,
          map.size(0),
          map.size(2),
          map.size(3),
          map.size(1),
          map.size(1) - upsampled,
          channels,
          /*sum_levels=*/false,
          /*kernel_size=*/1,
          align_corners,
          is_channels_last(map),
          dtype};
}

// Values of every level for pyramid_upsample, [N, S, 1, 1, R].
at::Tensor empty_values(const PyramidUpsampleParams& p, const at::TensorOptions& options) {
  return at::empty({p.batch, p.bin_count, 1, 1, p.channels}, options.dtype(sum_type(p.dtype)));
}

at::Tensor pyramid_concat(const at::Tensor& x, const at::Tensor& priors, at::IntArrayRef bins, bool align_corners) {
  constexpr auto op = "pyramid_concat";
  const DType dtype = check_map(op, "x", x);
  const PyramidLevels pyramid = check_bins(op, bins);
  check_priors(op, priors, x, pyramid);
  const bool channels_last = is_channels_last(x);
  const at::Tensor dense = channels_last ? x : x.contiguous();
  const int64_t channels = priors.size(1);
  at::Tensor map = at::empty({x.size(0), x.size(1) + pyramid.levels * channels, x.size(2), x.size(3)}, x.options(),
                             channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  if (map.numel() == 0) {
    return map;
  }
  if (channels == 0) {
    return map.copy_(x);
  }
  auto params = make_params(map, channels, pyramid, align_corners, dtype);
  params.channels_last = channels_last;
  const at::Tensor values = empty_values(params, x.options());
  values.squeeze(-2).squeeze(-2).copy_(priors.transpose(1, 2));
  const PyramidUpsampleEpilogue epilogue{.copied = dense.const_data_ptr()};
  PSPFAST_RUN(x, pyramid_upsample, params, epilogue, values.const_data_ptr(), map.mutable_data_ptr());
  return map;
}

at::Tensor pyramid_concat_backward(const at::Tensor& grad, at::IntArrayRef bins, bool align_corners, int64_t channels) {
  constexpr auto op = "pyramid_concat_backward";
  const DType dtype = check_map(op, "grad", grad);
  const PyramidLevels pyramid = check_bins(op, bins);
  TORCH_CHECK_VALUE(channels >= 0 && grad.size(1) >= pyramid.levels * channels, op, ": grad: expected at least ",
                    pyramid.levels * channels, " channels, got ", grad.size(1));
  if (grad.numel() == 0 || channels == 0) {
    return at::zeros({grad.size(0), channels, pyramid.bin_count}, grad.options());
  }
  const at::Tensor dense = is_channels_last(grad) ? grad : grad.contiguous();
  const auto params = make_params(dense, channels, pyramid, align_corners, dtype);
  at::Tensor grad_values = empty_values(params, grad.options());
  PSPFAST_RUN(grad, pyramid_upsample_backward, params, dense.const_data_ptr(), grad_values.mutable_data_ptr());
  return grad_values.squeeze(-2).squeeze(-2).transpose(1, 2).to(grad.scalar_type()).contiguous();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("pyramid_concat(Tensor x, Tensor priors, int[] bins, bool align_corners) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("pyramid_concat_backward(Tensor grad, int[] bins, bool align_corners, SymInt channels) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("pyramid_concat", &pyramid_concat);
  m.impl("pyramid_concat_backward", &pyramid_concat_backward);
}

}  // namespace pspfast
