// dilated_conv2d on the CPU: schemas, checks, allocation, and the choice between Winograd's algorithm and the library.

#include "checks.h"
#include "winograd.h"

namespace pspfast {
namespace {

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;

void check_weight(const char* op, const Tensor& weight) {
  PSPFAST_CHECK(
      weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) > 0 && weight.size(2) == 3 && weight.size(3) == 3, op,
      ": weight: expected [O, C, 3, 3], got shape ", weight.sizes());
}

int64_t check_dilation(const char* op, int64_t dilation) {
  PSPFAST_CHECK(dilation >= 1 && dilation <= kMaxAxisSize, op, ": dilation: expected 1 to ", kMaxAxisSize, ", got ",
                dilation);
  return dilation;
}

WinogradParams make_params(const char* op, const char* name, const Tensor& map, int64_t in_channels,
                           int64_t out_channels, int64_t dilation) {
  const DType dtype = check_map(op, name, map);
  return {map.size(0), map.size(2), map.size(3), in_channels, out_channels, check_dilation(op, dilation), dtype};
}

void check_channels(const char* op, const char* name, const Tensor& map, int64_t channels, const char* letter) {
  PSPFAST_CHECK(map.size(1) == channels, op, ": ", name, ": expected [N, ", letter, ", H, W] with ", letter, " = ",
                channels, ", got shape ", map.sizes());
}

void check_epilogue(const char* op, const Tensor& x, int64_t out_channels, const OptionalTensor& bias,
                    const OptionalTensor& residual) {
  if (bias) check_bias(op, *bias, out_channels, "x", x);
  if (residual) {
    check_shape(op, "residual", *residual, {x.size(0), out_channels, x.size(2), x.size(3)});
    check_same(op, "residual", *residual, "x", x);
  }
}

// Of a weight in a memory format whose taps lie at equal distances.
WinogradWeight weight_of(const Tensor& dense, bool transposed) {
  return {dense.const_data_ptr(), dense.stride(0), dense.stride(1), dense.stride(3), transposed, nullptr};
}

Tensor convolve(const WinogradParams& p, const Tensor& x, const WinogradWeight& weight, const OptionalTensor& bias,
                const OptionalTensor& residual, bool relu, MemoryFormat format) {
  const Tensor out = new_tensor({p.batch, p.out_channels, p.height, p.width}, x.scalar_type(), x, kChannelsLast);
  const Tensor map = in_format(x, kChannelsLast);
  const OptionalTensor dense_bias = in_format(bias), dense_residual = in_format(residual, kChannelsLast);
  cpu::winograd_conv2d(p, map.const_data_ptr(), weight, {data_or_null(dense_bias), data_or_null(dense_residual), relu},
                       out.mutable_data_ptr());
  return in_format(out, format);
}

// The library's convolution.
Tensor library_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t dilation) {
  const Ints ones = {1, 1}, dilations = {dilation, dilation};
  return take_tensor(call("aten::conv2d", "", x, weight, bias, ones, dilations, dilations, int64_t(1))[0]);
}

// Its gradients of x and of the weight, those that are asked for.
std::array<Tensor, 3> library_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, int64_t dilation,
                                       bool of_x, bool of_weight) {
  const Ints ones = {1, 1}, zeros = {0, 0}, dilations = {dilation, dilation};
  const std::array<bool, 3> wanted = {of_x, of_weight, false};
  const auto results = call("aten::convolution_backward", "", grad, x, weight, std::optional<Ints>(), ones, dilations,
                            dilations, false, zeros, int64_t(1), torch::headeronly::HeaderOnlyArrayRef<bool>(wanted));
  return {take_tensor(results[0]), take_tensor(results[1]), take_tensor(results[2])};
}

Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t dilation,
               const OptionalTensor& residual, bool relu) {
  constexpr auto op = "dilated_conv2d";
  check_weight(op, weight);
  const auto p = make_params(op, "x", x, weight.size(1), weight.size(0), dilation);
  check_channels(op, "x", x, p.in_channels, "C");
  check_same(op, "weight", weight, "x", x);
  check_epilogue(op, x, p.out_channels, bias, residual);
  const auto format = format_of(x, weight);
  if (p.batch == 0) {
    return new_tensor({0, p.out_channels, p.height, p.width}, x.scalar_type(), x, format);
  }
  if (winograd_is_faster(p)) {
    const Tensor filters = dense(weight);
    return convolve(p, x, weight_of(filters, false), bias, residual, relu, format);
  }
  const Tensor out = in_format(library_forward(x, weight, bias, dilation), format);
  if (residual || relu) {
    const OptionalTensor dense_residual = in_format(residual, format);
    cpu::add_relu(p.dtype, out.numel(), data_or_null(dense_residual), relu, out.mutable_data_ptr());
  }
  return out;
}

Tensor grad_input(const Tensor& grad, const Tensor& weight, int64_t dilation) {
  constexpr auto op = "dilated_conv2d_grad_input";
  check_weight(op, weight);
  const auto p = make_params(op, "grad", grad, weight.size(0), weight.size(1), dilation);
  check_channels(op, "grad", grad, p.in_channels, "O");
  check_same(op, "weight", weight, "grad", grad);
  const auto format = format_of(grad, weight);
  if (p.batch == 0) {
    return new_tensor({0, p.out_channels, p.height, p.width}, grad.scalar_type(), grad, format);
  }
  if (winograd_is_faster(p)) {
    const Tensor filters = dense(weight);
    return convolve(p, grad, weight_of(filters, true), {}, {}, false, format);
  }
  // Its values are not looked at.
  const Tensor x = new_tensor({p.batch, p.out_channels, p.height, p.width}, grad.scalar_type(), grad, format);
  return in_format(std::get<0>(library_backward(grad, x, weight, dilation, true, false)), format);
}

Tensor grad_weight(const Tensor& grad, const Tensor& x, int64_t dilation, bool channels_last) {
  constexpr auto op = "dilated_conv2d_grad_weight";
  const auto p = make_params(op, "x", x, x.size(1), grad.size(1), dilation);
  check_shape(op, "grad", grad, {p.batch, p.out_channels, p.height, p.width});
  check_same(op, "grad", grad, "x", x);
  const auto format = channels_last ? kChannelsLast : MemoryFormat::Contiguous;
  const Shape shape = {p.out_channels, p.in_channels, 3, 3};
  if (p.batch == 0 || p.out_channels == 0 || p.in_channels == 0) {
    Tensor zeros = new_tensor(shape, x.scalar_type(), x, format);
    return torch::stable::zero_(zeros);
  }
  if (winograd_is_faster(p)) {
    const Tensor grad_weight = new_tensor(shape, ScalarType::Float, x, format);
    cpu::winograd_weight_gradient(p, in_format(x, kChannelsLast).const_data_ptr(),
                                  in_format(grad, kChannelsLast).const_data_ptr(), channels_last, p.in_channels,
                                  static_cast<float*>(grad_weight.mutable_data_ptr()));
    return as_dtype(grad_weight, x.scalar_type());
  }
  // Its values are not looked at.
  const Tensor weight = new_tensor(shape, x.scalar_type(), x, format);
  return in_format(std::get<1>(library_backward(grad, x, weight, dilation, false, true)), format);
}

// The shape of what winograd_weight returns, in float.
Ints winograd_weight_shape(int64_t out_channels, int64_t in_channels) {
  return {kTilePositions, winograd_weight_stride(in_channels, out_channels)};
}

Tensor transform_weight(const Tensor& weight) {
  constexpr auto op = "winograd_weight";
  check_weight(op, weight);
  const DType dtype = check_dtype(op, "weight", weight);
  PSPFAST_CHECK(dtype != DType::kFloat64, op, ": weight: expected float32, float16 or bfloat16, got Double");
  const WinogradParams p = {1, 1, 1, weight.size(1), weight.size(0), 1, dtype};
  const Tensor transformed =
      new_tensor(Sizes(winograd_weight_shape(p.out_channels, p.in_channels)), ScalarType::Float, weight);
  const Tensor filters = dense(weight);
  cpu::winograd_weight(p, weight_of(filters, false), static_cast<float*>(transformed.mutable_data_ptr()));
  return transformed;
}

bool winograd_is_faster_of_sizes(int64_t batch, int64_t in_channels, int64_t out_channels, int64_t height,
                                 int64_t width, int64_t dilation, ScalarType dtype) {
  constexpr auto op = "winograd_is_faster";
  return winograd_is_faster({batch, height, width, in_channels, out_channels, check_dilation(op, dilation),
                             check_dtype(op, "dtype", dtype, /*is_cpu=*/true)});
}

Tensor forward_transformed(const Tensor& x, const Tensor& transformed, int64_t out_channels, const OptionalTensor& bias,
                           int64_t dilation, const OptionalTensor& residual, bool relu) {
  constexpr auto op = "winograd_conv2d";
  const auto p = make_params(op, "x", x, x.size(1), out_channels, dilation);
  PSPFAST_CHECK(p.dtype != DType::kFloat64, op, ": x: expected float32, float16 or bfloat16, got Double");
  const Ints shape = winograd_weight_shape(out_channels, p.in_channels);
  PSPFAST_CHECK(has_shape(transformed, Sizes(shape)) && transformed.is_contiguous(), op,
                ": transformed: expected what winograd_weight returns, of shape ", Sizes(shape), ", got shape ",
                transformed.sizes());
  PSPFAST_CHECK(transformed.scalar_type() == ScalarType::Float, op, ": transformed: expected Float, got ",
                transformed.scalar_type());
  check_epilogue(op, x, out_channels, bias, residual);
  const auto format = format_of(x);
  if (p.batch == 0) {
    return new_tensor({0, p.out_channels, p.height, p.width}, x.scalar_type(), x, format);
  }
  return convolve(p, x, {.transformed = static_cast<const float*>(transformed.const_data_ptr())}, bias, residual, relu,
                  format);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("dilated_conv2d(Tensor x, Tensor weight, Tensor? bias, int dilation, Tensor? residual, bool relu) -> Tensor");
  m.def("dilated_conv2d_grad_input(Tensor grad, Tensor weight, int dilation) -> Tensor");
  m.def("dilated_conv2d_grad_weight(Tensor grad, Tensor x, int dilation, bool channels_last) -> Tensor");
  m.def("winograd_weight(Tensor weight) -> Tensor");
  m.def(
      "winograd_conv2d(Tensor x, Tensor transformed, int out_channels, Tensor? bias, int dilation, Tensor? residual,"
      " bool relu) -> Tensor");
  // Rules, for Python not to repeat them.
  m.def(
      "winograd_is_faster(int batch, int in_channels, int out_channels, int height, int width, int dilation,"
      " ScalarType dtype) -> bool");
  m.def("winograd_weight_shape(int out_channels, int in_channels) -> int[]");
}

// Without a tensor no device chooses a kernel.
STABLE_TORCH_LIBRARY_IMPL(pspfast, CompositeExplicitAutograd, m) {
  m.impl("winograd_is_faster", TORCH_BOX(&winograd_is_faster_of_sizes));
  m.impl("winograd_weight_shape", TORCH_BOX(&winograd_weight_shape));
}

STABLE_TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("dilated_conv2d", TORCH_BOX(&forward));
  m.impl("dilated_conv2d_grad_input", TORCH_BOX(&grad_input));
  m.impl("dilated_conv2d_grad_weight", TORCH_BOX(&grad_weight));
  m.impl("winograd_weight", TORCH_BOX(&transform_weight));
  m.impl("winograd_conv2d", TORCH_BOX(&forward_transformed));
}

}  // namespace pspfast
