// pyramid_conv2d but for the convolution over the map: mixing the priors by the weight (CPU; elsewhere a matrix product
// of torch), and upsampling the result into the convolution's output. Schemas, checks, allocation, choice of the CPU or
// CUDA kernel.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "checks.h"
#include "dispatch.h"
#include "pyramid_mix.h"
#include "pyramid_upsample.h"

namespace pspfast {
namespace {

PyramidUpsampleParams make_upsample_params(const at::Tensor& map, int64_t kernel_size, const PyramidLevels& pyramid,
                                           bool align_corners, bool channels_last, DType dtype) {
  return {pyramid,
          map.size(0),
          map.size(2),
          map.size(3),
          /*map_channels=*/map.size(1),
          /*first_channel=*/0,
          /*channels=*/map.size(1),
          /*sum_levels=*/true,
          static_cast<int32_t>(kernel_size),
          align_corners,
          channels_last,
          dtype};
}

void check_kernel_size(const char* op, const char* argument, int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(height == width && (height == 1 || height == 3), op, ": ", argument,
                    ": expected a kernel of 1x1 or 3x3, got ", height, "x", width);
}

at::Tensor upsample_add(const at::Tensor& base, const at::Tensor& mixed, const std::optional<at::Tensor>& bias,
                        at::IntArrayRef bins, bool align_corners, bool relu) {
  constexpr auto op = "pyramid_upsample_add";
  const DType dtype = check_map(op, "base", base);
  const PyramidLevels pyramid = check_bins(op, bins);
  TORCH_CHECK_VALUE(mixed.dim() == 5 && mixed.size(0) == base.size(0) && mixed.size(1) == pyramid.bin_count &&
                        mixed.size(4) == base.size(1),
                    op, ": mixed: expected [N, S, k, k, O] with N = ", base.size(0), ", S = ", pyramid.bin_count,
                    " and O = ", base.size(1), ", got shape ", mixed.sizes());
  check_kernel_size(op, "mixed", mixed.size(2), mixed.size(3));
  const bool channels_last = is_channels_last(base);
  const auto params = make_upsample_params(base, mixed.size(2), pyramid, align_corners, channels_last, dtype);
  const auto sums = sum_type(dtype);
  TORCH_CHECK_TYPE(mixed.scalar_type() == sums, op, ": mixed: expected ", sums, ", got ", mixed.scalar_type());
  if (bias) check_bias(op, *bias, base.size(1), "base", base);
  const at::Tensor dense = channels_last ? base : base.contiguous();
  at::Tensor map = at::empty_like(dense);
  if (map.numel() == 0) {
    return map;
  }
  const at::Tensor dense_bias = bias ? bias->contiguous() : at::Tensor();
  const at::Tensor dense_mixed = mixed.contiguous();
  const PyramidUpsampleEpilogue epilogue{
      .base = dense.const_data_ptr(), .bias = bias ? dense_bias.const_data_ptr() : nullptr, .relu = relu};
  PSPFAST_RUN(base, pyramid_upsample, params, epilogue, dense_mixed.const_data_ptr(), map.mutable_data_ptr());
  return map;
}

at::Tensor upsample_add_backward(const at::Tensor& grad, at::IntArrayRef bins, bool align_corners,
                                 int64_t kernel_size) {
  constexpr auto op = "pyramid_upsample_add_backward";
  const DType dtype = check_map(op, "grad", grad);
  const PyramidLevels pyramid = check_bins(op, bins);
  check_kernel_size(op, "kernel_size", kernel_size, kernel_size);
  const bool channels_last = is_channels_last(grad);
  const auto params = make_upsample_params(grad, kernel_size, pyramid, align_corners, channels_last, dtype);
  at::Tensor grad_mixed = at::empty({params.batch, params.bin_count, kernel_size, kernel_size, params.channels},
                                    grad.options().dtype(sum_type(dtype)));
  if (grad.numel() == 0) {
    return grad_mixed.zero_();
  }
  const at::Tensor dense = channels_last ? grad : grad.contiguous();
  PSPFAST_RUN(grad, pyramid_upsample_backward, params, dense.const_data_ptr(), grad_mixed.mutable_data_ptr());
  return grad_mixed;
}

PyramidMixParams make_mix_params(const char* op, const at::Tensor& priors, const at::Tensor& weight,
                                 at::IntArrayRef bins, bool levels_first) {
  const DType dtype = check_dtype(op, "weight", weight);
  const PyramidLevels pyramid = check_bins(op, bins);
  TORCH_CHECK_VALUE(priors.dim() == 3 && priors.size(2) == pyramid.bin_count, op,
                    ": priors: expected [N, R, S] with S = ", pyramid.bin_count, ", got shape ", priors.sizes());
  check_same(op, "priors", priors, "weight", weight);
  TORCH_CHECK_VALUE(weight.dim() == 4, op, ": weight: expected [O, C + L R, k, k], got shape ", weight.sizes());
  check_kernel_size(op, "weight", weight.size(2), weight.size(3));
  const int64_t reduction = priors.size(1), x_channels = weight.size(1) - pyramid.levels * reduction;
  TORCH_CHECK_VALUE(x_channels >= 0, op, ": weight: expected at least L R = ", pyramid.levels * reduction,
                    " input channels, got ", weight.size(1));
  return {pyramid,
          priors.size(0),
          weight.size(0),
          weight.size(1),
          x_channels,
          levels_first ? pyramid.levels * reduction : 0,
          reduction,
          levels_first ? 0 : x_channels,
          weight.size(2) * weight.size(3),
          is_channels_last(weight),
          dtype};
}

at::MemoryFormat format_of(const PyramidMixParams& p) {
  return p.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// Channels innermost, the order of the kernels.
at::Tensor rows_of(const at::Tensor& priors) { return priors.transpose(1, 2).contiguous(); }

std::tuple<at::Tensor, at::Tensor> mix(const at::Tensor& priors, const at::Tensor& weight, at::IntArrayRef bins,
                                       bool levels_first) {
  const auto p = make_mix_params("pyramid_mix", priors, weight, bins, levels_first);
  const int64_t k = weight.size(2);
  at::Tensor mixed = at::empty({p.batch, p.bin_count, k, k, p.out_channels}, priors.options().dtype(sum_type(p.dtype)));
  at::Tensor weight_x = at::empty({p.out_channels, p.x_channels, k, k}, weight.options(), format_of(p));
  if (p.out_channels > 0) {
    cpu::pyramid_mix(p, rows_of(priors).const_data_ptr(), weight.contiguous(format_of(p)).const_data_ptr(),
                     mixed.mutable_data_ptr(), weight_x.mutable_data_ptr());
  }
  return {mixed, weight_x};
}

std::tuple<at::Tensor, at::Tensor> mix_backward(const at::Tensor& grad_mixed, const at::Tensor& grad_weight_x,
                                                const at::Tensor& priors, const at::Tensor& weight,
                                                at::IntArrayRef bins, bool levels_first) {
  constexpr auto op = "pyramid_mix_backward";
  const auto p = make_mix_params(op, priors, weight, bins, levels_first);
  const int64_t k = weight.size(2);
  const std::initializer_list<int64_t> mixed_shape = {p.batch, p.bin_count, k, k, p.out_channels};
  TORCH_CHECK_VALUE(grad_mixed.sizes() == at::IntArrayRef(mixed_shape), op, ": grad_mixed: expected shape ",
                    at::IntArrayRef(mixed_shape), ", got ", grad_mixed.sizes());
  const std::initializer_list<int64_t> x_shape = {p.out_channels, p.x_channels, k, k};
  TORCH_CHECK_VALUE(grad_weight_x.sizes() == at::IntArrayRef(x_shape), op, ": grad_weight_x: expected shape ",
                    at::IntArrayRef(x_shape), ", got ", grad_weight_x.sizes());
  at::Tensor grad_priors = at::empty({p.batch, p.bin_count, p.reduction}, priors.options());
  at::Tensor grad_weight = at::empty(weight.sizes(), weight.options(), format_of(p));
  if (p.out_channels > 0) {
    cpu::pyramid_mix_backward(p, grad_mixed.movedim(-1, 0).contiguous().const_data_ptr(),
                              grad_weight_x.contiguous(format_of(p)).const_data_ptr(), rows_of(priors).const_data_ptr(),
                              weight.contiguous(format_of(p)).const_data_ptr(), grad_priors.mutable_data_ptr(),
                              grad_weight.mutable_data_ptr());
  } else {
    grad_priors.zero_();
  }
  return {grad_priors.transpose(1, 2).contiguous(), grad_weight};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "pyramid_upsample_add(Tensor base, Tensor mixed, Tensor? bias, int[] bins, bool align_corners, bool relu)"
      " -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("pyramid_upsample_add_backward(Tensor grad, int[] bins, bool align_corners, int kernel_size) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("pyramid_mix(Tensor priors, Tensor weight, int[] bins, bool levels_first) -> (Tensor, Tensor)",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "pyramid_mix_backward(Tensor grad_mixed, Tensor grad_weight_x, Tensor priors, Tensor weight, int[] bins,"
      " bool levels_first) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("pyramid_upsample_add", &upsample_add);
  m.impl("pyramid_upsample_add_backward", &upsample_add_backward);
}

TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("pyramid_mix", &mix);
  m.impl("pyramid_mix_backward", &mix_backward);
}

}  // namespace pspfast
