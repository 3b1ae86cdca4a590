// upsample_cross_entropy: schema, checks, allocation, choice of the CPU or CUDA kernel.
#include "upsample_cross_entropy.h"

#include <limits>

#include "dispatch.h"
#include "upsample_checks.h"

namespace pspfast {
namespace {

bool is_integral(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
    case ScalarType::Long:
    case ScalarType::UInt16:
    case ScalarType::UInt32:
    case ScalarType::UInt64: return true;
    default: return false;
  }
}

UpsampleLossParams make_params(const char* op, const Tensor& logits, const Tensor& target, const OptionalTensor& weight,
                               int64_t ignore_index, bool align_corners, double label_smoothing) {
  PSPFAST_CHECK(target.dim() == 3 && logits.dim() == 4 && target.size(0) == logits.size(0), op,
                ": target: expected [N, H, W] with N of logits ", logits.sizes(), ", got shape ", target.sizes());
  PSPFAST_CHECK(is_integral(target.scalar_type()), op, ": target: expected integers, got ", target.scalar_type());
  check_device(op, "target", target, "logits", logits);
  const UpsampleParams params = make_upsample_params(op, logits, target.size(1), target.size(2), align_corners);
  PSPFAST_CHECK(params.classes <= std::numeric_limits<int32_t>::max(), op, ": logits: too many classes, got ",
                params.classes);
  if (weight) {
    PSPFAST_CHECK(has_shape(*weight, {params.classes}), op, ": weight: expected [K] with K = ", params.classes,
                  ", got shape ", weight->sizes());
    check_floating(op, "weight", *weight);
    check_device(op, "weight", *weight, "logits", logits);
  }
  PSPFAST_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op, ": label_smoothing: expected 0 to 1, got ",
                label_smoothing);
  return {params, ignore_index, label_smoothing};
}

OptionalTensor sums_weight(const UpsampleLossParams& params, const OptionalTensor& weight) {
  return weight ? OptionalTensor(in_format(as_dtype(*weight, sum_type(params.dtype)))) : std::nullopt;
}

const int64_t* labels_of(const Tensor& target) { return static_cast<const int64_t*>(target.const_data_ptr()); }

// `valid` is one bool, whether all labels are.
void check_targets(const char* op, const Tensor& valid, const UpsampleLossParams& p) {
  if (valid.is_cuda()) {
    // Waits for nothing: a wrong label stops the device's later work, as in torch's own loss.
    call("aten::_assert_async", "msg", valid,
         std::string("upsample_cross_entropy: target: a label is neither a class nor ignore_index"));
    return;
  }
  PSPFAST_CHECK(*static_cast<const bool*>(valid.const_data_ptr()), op, ": target: expected labels 0 to ", p.classes - 1,
                " or ", p.ignore_index, " (ignored), got others");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_cross_entropy(const Tensor& logits, const Tensor& target,
                                                                  const OptionalTensor& weight, int64_t ignore_index,
                                                                  bool align_corners, double label_smoothing,
                                                                  bool return_labels) {
  constexpr auto op = "upsample_cross_entropy";
  const auto params = make_params(op, logits, target, weight, ignore_index, align_corners, label_smoothing);
  const Tensor map = dense(logits), targets = in_format(as_dtype(target, ScalarType::Long));
  const OptionalTensor dense_weight = sums_weight(params, weight);
  const ScalarType sum_dtype = sum_type(params.dtype), label_dtype = default_label_type(params.classes);
  const Tensor lse = new_tensor(target.sizes(), sum_dtype, logits);
  const Tensor labels =
      return_labels ? new_tensor(target.sizes(), label_dtype, logits) : new_tensor({0}, label_dtype, logits);
  void* const labels_data = return_labels ? labels.mutable_data_ptr() : nullptr;
  const int64_t partials = PSPFAST_ASK(logits, upsample_cross_entropy_partials, params);
  const Tensor sums = new_tensor({partials, 3}, ScalarType::Double, logits);
  auto* const sums_data = static_cast<double*>(sums.mutable_data_ptr());
  if (lse.numel() > 0) {
    PSPFAST_RUN(logits, upsample_cross_entropy, params, map.const_data_ptr(), labels_of(targets),
                data_or_null(dense_weight), lse.mutable_data_ptr(), check_label_type(op, label_dtype, params.classes),
                labels_data, sums_data);
  }
  const Tensor loss = new_tensor(Shape{}, sum_dtype, logits), weight_sum = new_tensor(Shape{}, sum_dtype, logits);
  const Tensor valid = new_tensor(Shape{}, ScalarType::Bool, logits);
  PSPFAST_RUN(logits, upsample_cross_entropy_mean, params, partials, static_cast<const double*>(sums_data),
              loss.mutable_data_ptr(), weight_sum.mutable_data_ptr(), static_cast<bool*>(valid.mutable_data_ptr()));
  check_targets(op, valid, params);
  return {loss, lse, weight_sum, labels};
}

Tensor upsample_cross_entropy_backward(const Tensor& scale, const Tensor& logits, const Tensor& target,
                                       const OptionalTensor& weight, const Tensor& lse, int64_t ignore_index,
                                       bool align_corners, double label_smoothing) {
  constexpr auto op = "upsample_cross_entropy_backward";
  const auto params = make_params(op, logits, target, weight, ignore_index, align_corners, label_smoothing);
  const ScalarType sum_dtype = sum_type(params.dtype);
  PSPFAST_CHECK(has_shape(lse, target.sizes()), op, ": lse: expected shape ", target.sizes(), ", got ", lse.sizes());
  PSPFAST_CHECK(lse.scalar_type() == sum_dtype, op, ": lse: expected ", sum_dtype, ", got ", lse.scalar_type());
  PSPFAST_CHECK(scale.numel() == 1, op, ": scale: expected one number, got shape ", scale.sizes());
  const Tensor map = dense(logits), targets = in_format(as_dtype(target, ScalarType::Long)), dense_lse = in_format(lse);
  const OptionalTensor dense_weight = sums_weight(params, weight);
  const Tensor sum_scale = as_dtype(scale, sum_dtype);
  const Tensor grad_logits = new_tensor(logits.sizes(), logits.scalar_type(), logits, format_of(logits));
  if (grad_logits.numel() == 0) {
    return grad_logits;
  }
  const Tensor workspace =
      new_tensor({PSPFAST_ASK(logits, upsample_cross_entropy_workspace, params)}, ScalarType::Byte, logits);
  PSPFAST_RUN(logits, upsample_cross_entropy_backward, params, map.const_data_ptr(), labels_of(targets),
              data_or_null(dense_weight), dense_lse.const_data_ptr(), sum_scale.const_data_ptr(),
              grad_logits.mutable_data_ptr(), workspace.mutable_data_ptr());
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "upsample_cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, bool align_corners,"
      " float label_smoothing, bool return_labels) -> (Tensor loss, Tensor lse, Tensor weight_sum, Tensor labels)");
  m.def(
      "upsample_cross_entropy_backward(Tensor scale, Tensor logits, Tensor target, Tensor? weight, Tensor lse,"
      " int ignore_index, bool align_corners, float label_smoothing) -> Tensor");
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward));
}

}  // namespace pspfast
