// batch_norm_relu: schema, checks, allocation. On GPUs it is a Triton kernel's, see kernels/batch_norm_relu.py.
#include "batch_norm_relu.h"

#include "checks.h"

namespace pspfast {
namespace {

constexpr auto kChannelsLast = MemoryFormat::ChannelsLast;

BatchNormReluParams make_params(const char* op, const Tensor& x, bool relu, double eps) {
  const DType dtype = check_map(op, "x", x);
  return {x.size(0) * x.size(2) * x.size(3), x.size(1), dtype, relu, eps};
}

// A tensor [C] in the type of sums.
Tensor per_channel(const char* op, const char* argument, const Tensor& tensor, const Tensor& x) {
  PSPFAST_CHECK(has_shape(tensor, {x.size(1)}), op, ": ", argument, ": expected [C] with C = ", x.size(1),
                ", got shape ", tensor.sizes());
  check_floating(op, argument, tensor);
  check_device(op, argument, tensor, "x", x);
  return in_format(as_dtype(tensor, sum_type(check_dtype(op, "x", x))));
}

void check_like_x(const char* op, const char* argument, const Tensor& tensor, const Tensor& x) {
  PSPFAST_CHECK(has_shape(tensor, x.sizes()), op, ": ", argument, ": expected shape ", x.sizes(), ", got ",
                tensor.sizes());
  check_same(op, argument, tensor, "x", x);
}

// Holds what the pointers of BatchNormReluInputs point to.
struct Inputs {
  Tensor x;
  OptionalTensor residual;
  Tensor mean, var, weight, bias;

  BatchNormReluInputs pointers() const {
    return {x.const_data_ptr(),   data_or_null(residual),  mean.const_data_ptr(),
            var.const_data_ptr(), weight.const_data_ptr(), bias.const_data_ptr()};
  }
};

Inputs make_inputs(const char* op, const Tensor& x, const Tensor& mean, const Tensor& var, const Tensor& weight,
                   const Tensor& bias, const OptionalTensor& residual) {
  if (residual) check_like_x(op, "residual", *residual, x);
  return {in_format(x, kChannelsLast),    in_format(residual, kChannelsLast),   per_channel(op, "mean", mean, x),
          per_channel(op, "var", var, x), per_channel(op, "weight", weight, x), per_channel(op, "bias", bias, x)};
}

Tensor new_map_like(const Tensor& x) { return new_tensor(x.sizes(), x.scalar_type(), x, kChannelsLast); }

Tensor normalize(const BatchNormReluParams& params, const Inputs& inputs, MemoryFormat format) {
  const Tensor out = new_map_like(inputs.x);
  if (out.numel() > 0) cpu::batch_norm_relu(params, inputs.pointers(), out.mutable_data_ptr());
  return in_format(out, format);
}

Tensor apply(const Tensor& x, const Tensor& mean, const Tensor& var, const Tensor& weight, const Tensor& bias,
             const OptionalTensor& residual, bool relu, double eps) {
  constexpr auto op = "batch_norm_relu_apply";
  const auto params = make_params(op, x, relu, eps);
  return normalize(params, make_inputs(op, x, mean, var, weight, bias, residual), format_of(x));
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                           const OptionalTensor& residual, bool relu, double eps) {
  constexpr auto op = "batch_norm_relu";
  const auto params = make_params(op, x, relu, eps);
  const ScalarType sums = sum_type(params.dtype);
  Tensor mean = new_tensor({params.channels}, sums, x), var = new_tensor({params.channels}, sums, x);
  const Inputs inputs = make_inputs(op, x, mean, var, weight, bias, residual);
  if (x.numel() > 0) {
    cpu::batch_norm_statistics(params, inputs.x.const_data_ptr(), mean.mutable_data_ptr(), var.mutable_data_ptr());
  } else {
    torch::stable::zero_(mean), torch::stable::zero_(var);
  }
  return {normalize(params, inputs, format_of(x)), mean, var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                                    const Tensor& var, const Tensor& weight, const Tensor& bias,
                                                    const OptionalTensor& residual, bool relu, double eps) {
  constexpr auto op = "batch_norm_relu_backward";
  const auto params = make_params(op, x, relu, eps);
  check_like_x(op, "grad", grad, x);
  const Inputs inputs = make_inputs(op, x, mean, var, weight, bias, residual);
  const Tensor dense_grad = in_format(grad, kChannelsLast), grad_x = new_map_like(x);
  const Tensor grad_residual = residual ? new_map_like(x) : new_tensor({0}, x.scalar_type(), x);
  const ScalarType sums = sum_type(params.dtype);
  Tensor grad_weight = new_tensor({params.channels}, sums, x), grad_bias = new_tensor({params.channels}, sums, x);
  if (x.numel() > 0) {
    cpu::batch_norm_relu_backward(params, inputs.pointers(), dense_grad.const_data_ptr(),
                                  {grad_x.mutable_data_ptr(), residual ? grad_residual.mutable_data_ptr() : nullptr,
                                   grad_weight.mutable_data_ptr(), grad_bias.mutable_data_ptr()});
  } else {
    torch::stable::zero_(grad_weight), torch::stable::zero_(grad_bias);
  }
  const auto format = format_of(x);
  return {in_format(grad_x, format), as_dtype(grad_weight, weight.scalar_type()),
          as_dtype(grad_bias, bias.scalar_type()), residual ? in_format(grad_residual, format) : grad_residual};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "batch_norm_relu(Tensor x, Tensor weight, Tensor bias, Tensor? residual, bool relu, float eps)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_relu_apply(Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, Tensor? residual,"
      " bool relu, float eps) -> Tensor");
  m.def(
      "batch_norm_relu_backward(Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias,"
      " Tensor? residual, bool relu, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("batch_norm_relu", TORCH_BOX(&forward));
  m.impl("batch_norm_relu_apply", TORCH_BOX(&apply));
  m.impl("batch_norm_relu_backward", TORCH_BOX(&backward));
}

}  // namespace pspfast
