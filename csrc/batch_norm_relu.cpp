// batch_norm_relu: schema, checks, allocation. On GPUs it is a Triton kernel's, see kernels/batch_norm_relu.py.
#include "batch_norm_relu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "checks.h"

namespace pspfast {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

BatchNormReluParams make_params(const char* op, const at::Tensor& x, bool relu, double eps) {
  const DType dtype = check_map(op, "x", x);
  return {x.size(0) * x.size(2) * x.size(3), x.size(1), dtype, relu, eps};
}

// A tensor [C] in the type of sums.
at::Tensor per_channel(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& x) {
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == x.size(1), op, ": ", argument,
                    ": expected [C] with C = ", x.size(1), ", got shape ", tensor.sizes());
  return tensor.to(sum_type(check_dtype(op, "x", x))).contiguous();
}

void check_like_x(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& x) {
  TORCH_CHECK_VALUE(tensor.sizes() == x.sizes(), op, ": ", argument, ": expected shape ", x.sizes(), ", got ",
                    tensor.sizes());
  check_same(op, argument, tensor, "x", x);
}

// Holds what the pointers of BatchNormReluInputs point to.
struct Inputs {
  at::Tensor x, residual, mean, scale, bias;

  BatchNormReluInputs pointers() const {
    return {x.const_data_ptr(), residual.defined() ? residual.const_data_ptr() : nullptr, mean.const_data_ptr(),
            scale.const_data_ptr(), bias.const_data_ptr()};
  }
};

Inputs make_inputs(const char* op, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var,
                   const at::Tensor& weight, const at::Tensor& bias, const std::optional<at::Tensor>& residual,
                   double eps) {
  if (residual) check_like_x(op, "residual", *residual, x);
  const at::Tensor scale = per_channel(op, "weight", weight, x).mul(at::rsqrt(per_channel(op, "var", var, x).add(eps)));
  return {x.contiguous(kChannelsLast), residual ? residual->contiguous(kChannelsLast) : at::Tensor(),
          per_channel(op, "mean", mean, x), scale, per_channel(op, "bias", bias, x)};
}

at::Tensor apply(const at::Tensor& x, const at::Tensor& mean, const at::Tensor& var, const at::Tensor& weight,
                 const at::Tensor& bias, const std::optional<at::Tensor>& residual, bool relu, double eps) {
  constexpr auto op = "batch_norm_relu_apply";
  const auto params = make_params(op, x, relu, eps);
  const Inputs inputs = make_inputs(op, x, mean, var, weight, bias, residual, eps);
  at::Tensor out = at::empty_like(x, kChannelsLast);
  if (out.numel() > 0) {
    cpu::batch_norm_relu(params, inputs.pointers(), out.mutable_data_ptr());
  }
  return out.contiguous(format_of(x));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& x, const at::Tensor& weight,
                                                       const at::Tensor& bias,
                                                       const std::optional<at::Tensor>& residual, bool relu,
                                                       double eps) {
  constexpr auto op = "batch_norm_relu";
  const auto params = make_params(op, x, relu, eps);
  const auto options = x.options().dtype(sum_type(params.dtype));
  at::Tensor mean = at::zeros({params.channels}, options), var = at::zeros({params.channels}, options);
  const at::Tensor dense = x.contiguous(kChannelsLast);
  if (x.numel() > 0) {
    cpu::batch_norm_statistics(params, dense.const_data_ptr(), mean.mutable_data_ptr(), var.mutable_data_ptr());
  }
  const Inputs inputs = make_inputs(op, dense, mean, var, weight, bias, residual, eps);
  at::Tensor out = at::empty_like(x, kChannelsLast);
  if (x.numel() > 0) {
    cpu::batch_norm_relu(params, inputs.pointers(), out.mutable_data_ptr());
  }
  return {out.contiguous(format_of(x)), mean, var};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x,
                                                                    const at::Tensor& mean, const at::Tensor& var,
                                                                    const at::Tensor& weight, const at::Tensor& bias,
                                                                    const std::optional<at::Tensor>& residual,
                                                                    bool relu, double eps) {
  constexpr auto op = "batch_norm_relu_backward";
  const auto params = make_params(op, x, relu, eps);
  check_like_x(op, "grad", grad, x);
  const Inputs inputs = make_inputs(op, x, mean, var, weight, bias, residual, eps);
  const at::Tensor sum_var = per_channel(op, "var", var, x), dense_grad = grad.contiguous(kChannelsLast);
  at::Tensor grad_x = at::empty_like(x, kChannelsLast);
  at::Tensor grad_residual = residual ? at::empty_like(x, kChannelsLast) : at::empty({0}, x.options());
  at::Tensor grad_scale = at::zeros_like(sum_var), grad_bias = at::zeros_like(sum_var);
  if (x.numel() > 0) {
    cpu::batch_norm_relu_backward(params, inputs.pointers(), sum_var.const_data_ptr(), dense_grad.const_data_ptr(),
                                  {grad_x.mutable_data_ptr(), residual ? grad_residual.mutable_data_ptr() : nullptr,
                                   grad_scale.mutable_data_ptr(), grad_bias.mutable_data_ptr()});
  }
  const auto format = format_of(x);
  return {grad_x.contiguous(format), grad_scale.mul_(at::rsqrt(sum_var.add(eps))).to(weight.scalar_type()),
          grad_bias.to(bias.scalar_type()), residual ? grad_residual.contiguous(format) : grad_residual};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "batch_norm_relu(Tensor x, Tensor weight, Tensor bias, Tensor? residual, bool relu, float eps)"
      " -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "batch_norm_relu_apply(Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, Tensor? residual,"
      " bool relu, float eps) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "batch_norm_relu_backward(Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias,"
      " Tensor? residual, bool relu, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("batch_norm_relu", &forward);
  m.impl("batch_norm_relu_apply", &apply);
  m.impl("batch_norm_relu_backward", &backward);
}

}  // namespace pspfast
