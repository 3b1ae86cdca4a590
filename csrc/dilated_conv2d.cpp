// dilated_conv2d on the CPU: schemas, checks, allocation, and the choice between Winograd's algorithm and the library.
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

#include "checks.h"
#include "winograd.h"

namespace pspfast {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

void check_weight(const char* op, const at::Tensor& weight) {
  TORCH_CHECK_VALUE(
      weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) > 0 && weight.size(2) == 3 && weight.size(3) == 3, op,
      ": weight: expected [O, C, 3, 3], got shape ", weight.sizes());
}

int64_t check_dilation(const char* op, int64_t dilation) {
  TORCH_CHECK_VALUE(dilation >= 1 && dilation <= kMaxAxisSize, op, ": dilation: expected 1 to ", kMaxAxisSize, ", got ",
                    dilation);
  return dilation;
}

WinogradParams make_params(const char* op, const char* name, const at::Tensor& map, int64_t in_channels,
                           int64_t out_channels, int64_t dilation) {
  const DType dtype = check_map(op, name, map);
  return {map.size(0), map.size(2), map.size(3), in_channels, out_channels, check_dilation(op, dilation), dtype};
}

void check_channels(const char* op, const char* name, const at::Tensor& map, int64_t channels, const char* letter) {
  TORCH_CHECK_VALUE(map.size(1) == channels, op, ": ", name, ": expected [N, ", letter, ", H, W] with ", letter, " = ",
                    channels, ", got shape ", map.sizes());
}

void check_epilogue(const char* op, const at::Tensor& x, int64_t out_channels, const std::optional<at::Tensor>& bias,
                    const std::optional<at::Tensor>& residual) {
  if (bias) check_bias(op, *bias, out_channels, "x", x);
  if (residual) {
    const std::initializer_list<int64_t> shape = {x.size(0), out_channels, x.size(2), x.size(3)};
    TORCH_CHECK_VALUE(residual->sizes() == at::IntArrayRef(shape), op, ": residual: expected shape ",
                      at::IntArrayRef(shape), ", got ", residual->sizes());
    check_same(op, "residual", *residual, "x", x);
  }
}

// The weight in a memory format whose taps lie at equal distances.
at::Tensor dense_weight(const at::Tensor& weight) { return is_channels_last(weight) ? weight : weight.contiguous(); }

WinogradWeight weight_of(const at::Tensor& dense, bool transposed) {
  return {dense.const_data_ptr(), dense.stride(0), dense.stride(1), dense.stride(3), transposed, nullptr};
}

at::Tensor convolve(const WinogradParams& p, const at::Tensor& x, const WinogradWeight& weight,
                    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual, bool relu,
                    at::MemoryFormat format) {
  at::Tensor out = at::empty({p.batch, p.out_channels, p.height, p.width}, x.options(), kChannelsLast);
  const at::Tensor map = x.contiguous(kChannelsLast);
  const at::Tensor dense_bias = bias ? bias->contiguous() : at::Tensor();
  const at::Tensor dense_residual = residual ? residual->contiguous(kChannelsLast) : at::Tensor();
  cpu::winograd_conv2d(
      p, map.const_data_ptr(), weight,
      {bias ? dense_bias.const_data_ptr() : nullptr, residual ? dense_residual.const_data_ptr() : nullptr, relu},
      out.mutable_data_ptr());
  return out.contiguous(format);
}

// The gradients of x and of the weight, those that are asked for.
std::tuple<at::Tensor, at::Tensor, at::Tensor> library_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                const at::Tensor& weight, int64_t dilation, bool of_x,
                                                                bool of_weight) {
  return at::convolution_backward(grad, x, weight, std::nullopt, {1, 1}, {dilation, dilation}, {dilation, dilation},
                                  false, {0, 0}, 1, {of_x, of_weight, false});
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   int64_t dilation, const std::optional<at::Tensor>& residual, bool relu) {
  constexpr auto op = "dilated_conv2d";
  check_weight(op, weight);
  const auto p = make_params(op, "x", x, weight.size(1), weight.size(0), dilation);
  check_channels(op, "x", x, p.in_channels, "C");
  check_same(op, "weight", weight, "x", x);
  check_epilogue(op, x, p.out_channels, bias, residual);
  const auto format = format_of(x, weight);
  if (p.batch == 0) {
    return at::empty({0, p.out_channels, p.height, p.width}, x.options(), format);
  }
  if (winograd_is_faster(p)) {
    const at::Tensor dense = dense_weight(weight);
    return convolve(p, x, weight_of(dense, false), bias, residual, relu, format);
  }
  at::Tensor out = at::conv2d(x, weight, bias, 1, dilation, dilation);
  if (residual) out.add_(*residual);
  if (relu) out.relu_();
  return out.contiguous(format);
}

at::Tensor grad_input(const at::Tensor& grad, const at::Tensor& weight, int64_t dilation) {
  constexpr auto op = "dilated_conv2d_grad_input";
  check_weight(op, weight);
  const auto p = make_params(op, "grad", grad, weight.size(0), weight.size(1), dilation);
  check_channels(op, "grad", grad, p.in_channels, "O");
  check_same(op, "weight", weight, "grad", grad);
  const auto format = format_of(grad, weight);
  if (p.batch == 0) {
    return at::empty({0, p.out_channels, p.height, p.width}, grad.options(), format);
  }
  if (winograd_is_faster(p)) {
    const at::Tensor dense = dense_weight(weight);
    return convolve(p, grad, weight_of(dense, true), {}, {}, false, format);
  }
  // Its values are not looked at.
  const at::Tensor x = at::empty({p.batch, p.out_channels, p.height, p.width}, grad.options(), format);
  return std::get<0>(library_backward(grad, x, weight, dilation, true, false)).contiguous(format);
}

at::Tensor grad_weight(const at::Tensor& grad, const at::Tensor& x, int64_t dilation, bool channels_last) {
  constexpr auto op = "dilated_conv2d_grad_weight";
  const auto p = make_params(op, "x", x, x.size(1), grad.size(1), dilation);
  const std::initializer_list<int64_t> shape = {p.batch, p.out_channels, p.height, p.width};
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(shape), op, ": grad: expected shape ", at::IntArrayRef(shape),
                    ", got ", grad.sizes());
  check_same(op, "grad", grad, "x", x);
  const auto format = channels_last ? kChannelsLast : at::MemoryFormat::Contiguous;
  at::Tensor weight = at::empty({p.out_channels, p.in_channels, 3, 3}, x.options(), format);
  if (p.batch == 0 || weight.numel() == 0) {
    return weight.zero_();
  }
  if (winograd_is_faster(p)) {
    const at::Tensor sums = p.dtype == DType::kFloat32 ? weight : at::empty_like(weight, at::kFloat);
    cpu::winograd_weight_gradient(p, x.contiguous(kChannelsLast).const_data_ptr(),
                                  grad.contiguous(kChannelsLast).const_data_ptr(), channels_last, p.in_channels,
                                  sums.mutable_data_ptr<float>());
    return sums.to(weight.scalar_type());
  }
  return std::get<1>(library_backward(grad, x, weight, dilation, false, true)).contiguous(format);
}

// The shape of what winograd_weight returns, in float.
std::vector<int64_t> winograd_weight_shape(int64_t out_channels, int64_t in_channels) {
  return {kTilePositions, winograd_weight_stride(in_channels, out_channels)};
}

at::Tensor transform_weight(const at::Tensor& weight) {
  constexpr auto op = "winograd_weight";
  check_weight(op, weight);
  const DType dtype = check_dtype(op, "weight", weight);
  TORCH_CHECK_TYPE(dtype != DType::kFloat64, op, ": weight: expected float32, float16 or bfloat16, got Double");
  const WinogradParams p = {1, 1, 1, weight.size(1), weight.size(0), 1, dtype};
  at::Tensor transformed =
      at::empty(winograd_weight_shape(p.out_channels, p.in_channels), weight.options().dtype(at::kFloat));
  const at::Tensor dense = dense_weight(weight);
  cpu::winograd_weight(p, weight_of(dense, false), transformed.mutable_data_ptr<float>());
  return transformed;
}

bool winograd_is_faster_of_sizes(int64_t batch, int64_t in_channels, int64_t out_channels, int64_t height,
                                 int64_t width, int64_t dilation, at::ScalarType dtype) {
  constexpr auto op = "winograd_is_faster";
  return winograd_is_faster({batch, height, width, in_channels, out_channels, check_dilation(op, dilation),
                             check_dtype(op, "dtype", dtype, at::kCPU)});
}

at::Tensor forward_transformed(const at::Tensor& x, const at::Tensor& transformed, int64_t out_channels,
                               const std::optional<at::Tensor>& bias, int64_t dilation,
                               const std::optional<at::Tensor>& residual, bool relu) {
  constexpr auto op = "winograd_conv2d";
  const auto p = make_params(op, "x", x, x.size(1), out_channels, dilation);
  TORCH_CHECK_TYPE(p.dtype != DType::kFloat64, op, ": x: expected float32, float16 or bfloat16, got Double");
  const std::vector<int64_t> shape = winograd_weight_shape(out_channels, p.in_channels);
  TORCH_CHECK_VALUE(transformed.sizes() == shape && transformed.is_contiguous(), op,
                    ": transformed: expected what winograd_weight returns, of shape ", at::IntArrayRef(shape),
                    ", got shape ", transformed.sizes());
  TORCH_CHECK_TYPE(transformed.scalar_type() == at::kFloat, op, ": transformed: expected Float, got ",
                   transformed.scalar_type());
  check_epilogue(op, x, out_channels, bias, residual);
  const auto format = format_of(x);
  if (p.batch == 0) {
    return at::empty({0, p.out_channels, p.height, p.width}, x.options(), format);
  }
  return convolve(p, x, {.transformed = transformed.const_data_ptr<float>()}, bias, residual, relu, format);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("dilated_conv2d(Tensor x, Tensor weight, Tensor? bias, int dilation, Tensor? residual, bool relu) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("dilated_conv2d_grad_input(Tensor grad, Tensor weight, int dilation) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("dilated_conv2d_grad_weight(Tensor grad, Tensor x, int dilation, bool channels_last) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("winograd_weight(Tensor weight) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "winograd_conv2d(Tensor x, Tensor transformed, int out_channels, Tensor? bias, int dilation, Tensor? residual,"
      " bool relu) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  // Rules, for Python not to repeat them; without a tensor no device chooses a kernel, so it stands here.
  m.def(
      "winograd_is_faster(int batch, int in_channels, int out_channels, int height, int width, int dilation,"
      " ScalarType dtype) -> bool",
      &winograd_is_faster_of_sizes);
  m.def("winograd_weight_shape(int out_channels, int in_channels) -> int[]", &winograd_weight_shape);
}

TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("dilated_conv2d", &forward);
  m.impl("dilated_conv2d_grad_input", &grad_input);
  m.impl("dilated_conv2d_grad_weight", &grad_weight);
  m.impl("winograd_weight", &transform_weight);
  m.impl("winograd_conv2d", &forward_transformed);
}

}  // namespace pspfast
