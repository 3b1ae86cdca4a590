// pyramid_conv2d but for the convolution over the map: mixing the priors by the weight (CPU; elsewhere a matrix product
// of torch), and upsampling the result into the convolution's output. Schemas, checks, allocation, choice of the CPU or
// CUDA kernel.

#include "checks.h"
#include "dispatch.h"
#include "pyramid_mix.h"
#include "pyramid_upsample.h"

namespace pspfast {
namespace {

PyramidUpsampleParams make_upsample_params(const Tensor& map, int64_t kernel_size, const PyramidLevels& pyramid,
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
  PSPFAST_CHECK(height == width && (height == 1 || height == 3), op, ": ", argument,
                ": expected a kernel of 1x1 or 3x3, got ", height, "x", width);
}

Tensor upsample_add(const Tensor& base, const Tensor& mixed, const OptionalTensor& bias, const Ints& bins,
                    bool align_corners, bool relu) {
  constexpr auto op = "pyramid_upsample_add";
  const DType dtype = check_map(op, "base", base);
  const PyramidLevels pyramid = check_bins(op, bins);
  PSPFAST_CHECK(mixed.dim() == 5 && mixed.size(0) == base.size(0) && mixed.size(1) == pyramid.bin_count &&
                    mixed.size(4) == base.size(1),
                op, ": mixed: expected [N, S, k, k, O] with N = ", base.size(0), ", S = ", pyramid.bin_count,
                " and O = ", base.size(1), ", got shape ", mixed.sizes());
  check_kernel_size(op, "mixed", mixed.size(2), mixed.size(3));
  const bool channels_last = is_channels_last(base);
  const auto params = make_upsample_params(base, mixed.size(2), pyramid, align_corners, channels_last, dtype);
  const auto sums = sum_type(dtype);
  PSPFAST_CHECK(mixed.scalar_type() == sums, op, ": mixed: expected ", sums, ", got ", mixed.scalar_type());
  if (bias) check_bias(op, *bias, base.size(1), "base", base);
  const Tensor added = dense(base), map = new_tensor(base.sizes(), base.scalar_type(), base, format_of(base));
  if (map.numel() == 0) {
    return map;
  }
  const OptionalTensor dense_bias = in_format(bias);
  const Tensor dense_mixed = in_format(mixed);
  const MapUpsampleEpilogue epilogue{.base = added.const_data_ptr(), .bias = data_or_null(dense_bias), .relu = relu};
  PSPFAST_RUN(base, pyramid_upsample, params, epilogue, dense_mixed.const_data_ptr(), map.mutable_data_ptr());
  return map;
}

Tensor upsample_add_backward(const Tensor& grad, const Ints& bins, bool align_corners, int64_t kernel_size) {
  constexpr auto op = "pyramid_upsample_add_backward";
  const DType dtype = check_map(op, "grad", grad);
  const PyramidLevels pyramid = check_bins(op, bins);
  check_kernel_size(op, "kernel_size", kernel_size, kernel_size);
  const bool channels_last = is_channels_last(grad);
  const auto params = make_upsample_params(grad, kernel_size, pyramid, align_corners, channels_last, dtype);
  Tensor grad_mixed =
      new_tensor({params.batch, params.bin_count, kernel_size, kernel_size, params.channels}, sum_type(dtype), grad);
  if (grad.numel() == 0) {
    return torch::stable::zero_(grad_mixed);
  }
  const Tensor map = dense(grad);
  const Tensor sums = new_tensor({PSPFAST_ASK(grad, pyramid_upsample_sums, params)}, ScalarType::Float, grad);
  PSPFAST_RUN(grad, pyramid_upsample_backward, params, map.const_data_ptr(), grad_mixed.mutable_data_ptr(),
              static_cast<float*>(sums.mutable_data_ptr()));
  return grad_mixed;
}

PyramidMixParams make_mix_params(const char* op, const Tensor& priors, const Tensor& weight, const Ints& bins,
                                 bool levels_first) {
  const DType dtype = check_dtype(op, "weight", weight);
  const PyramidLevels pyramid = check_bins(op, bins);
  PSPFAST_CHECK(priors.dim() == 3 && priors.size(2) == pyramid.bin_count, op,
                ": priors: expected [N, R, S] with S = ", pyramid.bin_count, ", got shape ", priors.sizes());
  check_same(op, "priors", priors, "weight", weight);
  PSPFAST_CHECK(weight.dim() == 4, op, ": weight: expected [O, C + L R, k, k], got shape ", weight.sizes());
  check_kernel_size(op, "weight", weight.size(2), weight.size(3));
  const int64_t reduction = priors.size(1), x_channels = weight.size(1) - pyramid.levels * reduction;
  PSPFAST_CHECK(x_channels >= 0, op, ": weight: expected at least L R = ", pyramid.levels * reduction,
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

MemoryFormat format_of(const PyramidMixParams& p) {
  return p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Channels innermost, the order of the kernels.
Tensor rows_of(const Tensor& priors) { return in_format(torch::stable::transpose(priors, 1, 2)); }

std::tuple<Tensor, Tensor> mix(const Tensor& priors, const Tensor& weight, const Ints& bins, bool levels_first) {
  const auto p = make_mix_params("pyramid_mix", priors, weight, bins, levels_first);
  const int64_t k = weight.size(2);
  const Tensor mixed = new_tensor({p.batch, p.bin_count, k, k, p.out_channels}, sum_type(p.dtype), priors);
  const Tensor weight_x = new_tensor({p.out_channels, p.x_channels, k, k}, weight.scalar_type(), weight, format_of(p));
  if (p.out_channels > 0) {
    cpu::pyramid_mix(p, rows_of(priors).const_data_ptr(), in_format(weight, format_of(p)).const_data_ptr(),
                     mixed.mutable_data_ptr(), weight_x.mutable_data_ptr());
  }
  return {mixed, weight_x};
}

std::tuple<Tensor, Tensor> mix_backward(const Tensor& grad_mixed, const Tensor& grad_weight_x, const Tensor& priors,
                                        const Tensor& weight, const Ints& bins, bool levels_first) {
  constexpr auto op = "pyramid_mix_backward";
  const auto p = make_mix_params(op, priors, weight, bins, levels_first);
  const int64_t k = weight.size(2);
  check_shape(op, "grad_mixed", grad_mixed, {p.batch, p.bin_count, k, k, p.out_channels});
  check_shape(op, "grad_weight_x", grad_weight_x, {p.out_channels, p.x_channels, k, k});
  Tensor grad_priors = new_tensor({p.batch, p.bin_count, p.reduction}, priors.scalar_type(), priors);
  const Tensor grad_weight = new_tensor(weight.sizes(), weight.scalar_type(), weight, format_of(p));
  if (p.out_channels > 0) {
    const Tensor filters_first = in_format(take_tensor(call("aten::permute", "", grad_mixed, Ints{4, 0, 1, 2, 3})[0]));
    cpu::pyramid_mix_backward(p, filters_first.const_data_ptr(),
                              in_format(grad_weight_x, format_of(p)).const_data_ptr(), rows_of(priors).const_data_ptr(),
                              in_format(weight, format_of(p)).const_data_ptr(), grad_priors.mutable_data_ptr(),
                              grad_weight.mutable_data_ptr());
  } else {
    torch::stable::zero_(grad_priors);
  }
  return {rows_of(grad_priors), grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "pyramid_upsample_add(Tensor base, Tensor mixed, Tensor? bias, int[] bins, bool align_corners, bool relu)"
      " -> Tensor");
  m.def("pyramid_upsample_add_backward(Tensor grad, int[] bins, bool align_corners, int kernel_size) -> Tensor");
  m.def("pyramid_mix(Tensor priors, Tensor weight, int[] bins, bool levels_first) -> (Tensor, Tensor)");
  m.def(
      "pyramid_mix_backward(Tensor grad_mixed, Tensor grad_weight_x, Tensor priors, Tensor weight, int[] bins,"
      " bool levels_first) -> (Tensor, Tensor)");
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("pyramid_upsample_add", TORCH_BOX(&upsample_add));
  m.impl("pyramid_upsample_add_backward", TORCH_BOX(&upsample_add_backward));
}

STABLE_TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("pyramid_mix", TORCH_BOX(&mix));
  m.impl("pyramid_mix_backward", TORCH_BOX(&mix_backward));
}

}  // namespace pspfast
