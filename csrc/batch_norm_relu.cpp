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

Tensor check_statistics(const char* op, const Tensor& statistics, const Tensor& x) {
  const ScalarType dtype = sum_type(check_dtype(op, "x", x));
  PSPFAST_CHECK(has_shape(statistics, {2 * x.size(1) + 1}), op, ": statistics: expected [2 C + 1] with C = ", x.size(1),
                ", got shape ", statistics.sizes());
  PSPFAST_CHECK(statistics.scalar_type() == dtype, op, ": statistics: expected ", dtype, ", got ",
                statistics.scalar_type());
  check_device(op, "statistics", statistics, "x", x);
  return in_format(statistics);
}

// Holds what the pointers of BatchNormReluInputs point to.
struct Inputs {
  Tensor x;
  OptionalTensor residual;
  Tensor statistics, weight, bias;

  BatchNormReluInputs pointers() const {
    return {x.const_data_ptr(), data_or_null(residual), statistics.const_data_ptr(), weight.const_data_ptr(),
            bias.const_data_ptr()};
  }
};

Inputs make_inputs(const char* op, const Tensor& x, const Tensor& statistics, const Tensor& weight, const Tensor& bias,
                   const OptionalTensor& residual) {
  if (residual) check_like_x(op, "residual", *residual, x);
  return {in_format(x, kChannelsLast), in_format(residual, kChannelsLast), check_statistics(op, statistics, x),
          per_channel(op, "weight", weight, x), per_channel(op, "bias", bias, x)};
}

// Running statistics in the type of sums, [channels] each; what was converted is written back.
class Running {
 public:
  Running(const char* op, const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& batches,
          double momentum, const Tensor& like, int64_t channels)
      : mean_(op, "running_mean", mean, like, channels),
        var_(op, "running_var", var, like, channels),
        batches_(batches),
        momentum_(momentum) {
    PSPFAST_CHECK(
        !batches || (batches->scalar_type() == ScalarType::Long && batches->numel() == 1 && batches->is_cpu()), op,
        ": num_batches_tracked: expected one int64 on the CPU");
  }

  void move(const BatchNormReluParams& params, const Tensor& statistics) {
    cpu::move_running_statistics(params, statistics.const_data_ptr(),
                                 {mean_.data(), var_.data(),
                                  batches_ ? static_cast<int64_t*>(batches_->mutable_data_ptr()) : nullptr, momentum_});
    mean_.write_back(), var_.write_back();
  }

 private:
  struct Converted {
    OptionalTensor given, used;

    Converted(const char* op, const char* argument, const OptionalTensor& tensor, const Tensor& like, int64_t channels)
        : given(tensor) {
      if (!tensor) return;
      PSPFAST_CHECK(has_shape(*tensor, {channels}), op, ": ", argument, ": expected [C] with C = ", channels,
                    ", got shape ", tensor->sizes());
      check_floating(op, argument, *tensor);
      check_device(op, argument, *tensor, "x", like);
      used = in_format(as_dtype(*tensor, like.scalar_type()));
    }

    void* data() { return used ? used->mutable_data_ptr() : nullptr; }

    void write_back() {
      if (used && used->const_data_ptr() != given->const_data_ptr()) torch::stable::copy_(*given, *used);
    }
  };

  Converted mean_, var_;
  OptionalTensor batches_;
  double momentum_;
};

Tensor new_map_like(const Tensor& x) { return new_tensor(x.sizes(), x.scalar_type(), x, kChannelsLast); }

Tensor statistics(const Tensor& x, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                  const OptionalTensor& batches, double momentum) {
  constexpr auto op = "batch_norm_statistics";
  const auto params = make_params(op, x, false, 0);
  Tensor result = new_tensor({2 * params.channels + 1}, sum_type(params.dtype), x);
  Running running(op, running_mean, running_var, batches, momentum, result, params.channels);
  if (x.numel() > 0) {
    cpu::batch_norm_statistics(params, in_format(x, kChannelsLast).const_data_ptr(), result.mutable_data_ptr());
  } else {
    torch::stable::zero_(result);
  }
  running.move(params, result);
  return result;
}

Tensor merge(const Tensor& parts, const OptionalTensor& running_mean, const OptionalTensor& running_var,
             const OptionalTensor& batches, double momentum) {
  constexpr auto op = "batch_norm_merge_statistics";
  PSPFAST_CHECK(parts.dim() == 2 && parts.size(1) % 2 == 1, op, ": parts: expected [P, 2 C + 1], got shape ",
                parts.sizes());
  const DType dtype = check_dtype(op, "parts", parts);
  PSPFAST_CHECK(sum_type(dtype) == parts.scalar_type(), op, ": parts: expected float32 or float64, got ",
                parts.scalar_type());
  const BatchNormReluParams params{0, parts.size(1) / 2, dtype, false, 0};
  Tensor result = new_tensor({parts.size(1)}, parts.scalar_type(), parts);
  Running running(op, running_mean, running_var, batches, momentum, result, params.channels);
  cpu::merge_batch_norm_statistics(params, parts.size(0), in_format(parts).const_data_ptr(), result.mutable_data_ptr());
  running.move(params, result);
  return result;
}

Tensor forward(const Tensor& x, const Tensor& statistics, const Tensor& weight, const Tensor& bias,
               const OptionalTensor& residual, bool relu, double eps) {
  constexpr auto op = "batch_norm_relu";
  const auto params = make_params(op, x, relu, eps);
  const Inputs inputs = make_inputs(op, x, statistics, weight, bias, residual);
  const Tensor out = new_map_like(x);
  if (out.numel() > 0) cpu::batch_norm_relu(params, inputs.pointers(), out.mutable_data_ptr());
  return in_format(out, format_of(x));
}

std::tuple<Tensor, Tensor> grad_sums(const Tensor& grad, const Tensor& x, const Tensor& statistics,
                                     const Tensor& weight, const Tensor& bias, const OptionalTensor& residual,
                                     bool relu, double eps) {
  constexpr auto op = "batch_norm_relu_grad_sums";
  const auto params = make_params(op, x, relu, eps);
  check_like_x(op, "grad", grad, x);
  const Inputs inputs = make_inputs(op, x, statistics, weight, bias, residual);
  const Tensor dense_grad = in_format(grad, kChannelsLast);
  const Tensor grad_residual = residual ? new_map_like(x) : new_tensor({0}, x.scalar_type(), x);
  Tensor sums = new_tensor({2, params.channels}, sum_type(params.dtype), x);
  if (x.numel() > 0) {
    cpu::batch_norm_relu_grad_sums(params, inputs.pointers(), dense_grad.const_data_ptr(),
                                   residual ? grad_residual.mutable_data_ptr() : nullptr, sums.mutable_data_ptr());
  } else {
    torch::stable::zero_(sums);
  }
  return {sums, residual ? in_format(grad_residual, format_of(x)) : grad_residual};
}

Tensor grad_input(const Tensor& grad, const Tensor& x, const Tensor& statistics, const Tensor& sums,
                  const Tensor& weight, const Tensor& bias, bool relu, double eps) {
  constexpr auto op = "batch_norm_relu_grad_input";
  const auto params = make_params(op, x, relu, eps);
  check_like_x(op, "grad", grad, x);
  PSPFAST_CHECK(has_shape(sums, {2, params.channels}) && sums.scalar_type() == statistics.scalar_type(), op,
                ": sums: expected [2, C] with C = ", params.channels, " of the statistics' type, got shape ",
                sums.sizes());
  check_device(op, "sums", sums, "x", x);
  const Inputs inputs = make_inputs(op, x, statistics, weight, bias, std::nullopt);
  const Tensor dense_grad = in_format(grad, kChannelsLast), dense_sums = in_format(sums), grad_x = new_map_like(x);
  if (x.numel() > 0) {
    cpu::batch_norm_relu_grad_input(params, inputs.pointers(), dense_grad.const_data_ptr(), dense_sums.const_data_ptr(),
                                    grad_x.mutable_data_ptr());
  }
  return in_format(grad_x, format_of(x));
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& statistics,
                                            const Tensor& weight, const Tensor& bias, const OptionalTensor& residual,
                                            bool relu, double eps) {
  const auto [sums, grad_residual] = grad_sums(grad, x, statistics, weight, bias, residual, relu, eps);
  const Tensor& behind_relu = residual ? grad_residual : grad;
  return {grad_input(behind_relu, x, statistics, sums, weight, bias, relu && !residual, eps), sums, grad_residual};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "batch_norm_statistics(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
      " Tensor(c!)? num_batches_tracked, float momentum) -> Tensor");
  m.def(
      "batch_norm_merge_statistics(Tensor parts, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
      " Tensor(c!)? num_batches_tracked, float momentum) -> Tensor");
  m.def(
      "batch_norm_relu(Tensor x, Tensor statistics, Tensor weight, Tensor bias, Tensor? residual, bool relu, float eps)"
      " -> Tensor");
  m.def(
      "batch_norm_relu_grad_sums(Tensor grad, Tensor x, Tensor statistics, Tensor weight, Tensor bias,"
      " Tensor? residual, bool relu, float eps) -> (Tensor, Tensor)");
  m.def(
      "batch_norm_relu_grad_input(Tensor grad, Tensor x, Tensor statistics, Tensor sums, Tensor weight, Tensor bias,"
      " bool relu, float eps) -> Tensor");
  m.def(
      "batch_norm_relu_backward(Tensor grad, Tensor x, Tensor statistics, Tensor weight, Tensor bias, Tensor? residual,"
      " bool relu, float eps) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pspfast, CPU, m) {
  m.impl("batch_norm_statistics", TORCH_BOX(&statistics));
  m.impl("batch_norm_merge_statistics", TORCH_BOX(&merge));
  m.impl("batch_norm_relu", TORCH_BOX(&forward));
  m.impl("batch_norm_relu_grad_sums", TORCH_BOX(&grad_sums));
  m.impl("batch_norm_relu_grad_input", TORCH_BOX(&grad_input));
  m.impl("batch_norm_relu_backward", TORCH_BOX(&backward));
}

}  // namespace pspfast
