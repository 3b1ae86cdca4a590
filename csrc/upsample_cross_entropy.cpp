// upsample_cross_entropy: schema, checks, allocation, choice of the CPU or CUDA kernel.
#include "upsample_cross_entropy.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "dispatch.h"
#include "upsample_checks.h"

namespace pspfast {
namespace {

UpsampleLossParams make_params(const char* op, const at::Tensor& logits, const at::Tensor& target,
                               const std::optional<at::Tensor>& weight, int64_t ignore_index, bool align_corners,
                               double label_smoothing) {
  TORCH_CHECK_VALUE(target.dim() == 3 && logits.dim() == 4 && target.size(0) == logits.size(0), op,
                    ": target: expected [N, H, W] with N of logits ", logits.sizes(), ", got shape ", target.sizes());
  TORCH_CHECK_TYPE(c10::isIntegralType(target.scalar_type(), /*includeBool=*/false), op,
                   ": target: expected integers, got ", target.scalar_type());
  TORCH_CHECK_VALUE(target.device() == logits.device(), op, ": target: expected device ", logits.device(),
                    " as logits, got ", target.device());
  const UpsampleParams params = make_upsample_params(op, logits, target.size(1), target.size(2), align_corners);
  TORCH_CHECK_VALUE(params.classes <= std::numeric_limits<int32_t>::max(), op, ": logits: too many classes, got ",
                    params.classes);
  if (weight) {
    TORCH_CHECK_VALUE(weight->dim() == 1 && weight->size(0) == params.classes, op,
                      ": weight: expected [K] with K = ", params.classes, ", got shape ", weight->sizes());
    TORCH_CHECK_TYPE(weight->is_floating_point(), op, ": weight: expected floating point, got ", weight->scalar_type());
    TORCH_CHECK_VALUE(weight->device() == logits.device(), op, ": weight: expected device ", logits.device(),
                      " as logits, got ", weight->device());
  }
  TORCH_CHECK_VALUE(label_smoothing >= 0 && label_smoothing <= 1, op, ": label_smoothing: expected 0 to 1, got ",
                    label_smoothing);
  return {params, ignore_index, label_smoothing};
}

at::Tensor sums_weight(const UpsampleLossParams& params, const std::optional<at::Tensor>& weight) {
  return weight ? weight->to(sum_type(params.dtype)).contiguous() : at::Tensor();
}

const void* data_or_null(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

void check_targets(const char* op, const at::Tensor& invalid, const at::Tensor& target, const UpsampleLossParams& p) {
  if (!target.is_cpu()) {
    // Waits for nothing: a wrong label stops the device's later work, as in torch's own loss.
    at::_assert_async(invalid == 0, "upsample_cross_entropy: target: a label is neither a class nor ignore_index");
    return;
  }
  if (invalid.item<double>() > 0) {
    const at::Tensor wrong = ((target < 0) | (target >= p.classes)) & (target != p.ignore_index);
    TORCH_CHECK_VALUE(false, op, ": target: expected labels 0 to ", p.classes - 1, " or ", p.ignore_index,
                      " (ignored), got ", std::get<0>(at::_unique(target.masked_select(wrong))).slice(0, 0, 8));
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> upsample_cross_entropy(
    const at::Tensor& logits, const at::Tensor& target, const std::optional<at::Tensor>& weight, int64_t ignore_index,
    bool align_corners, double label_smoothing, bool return_labels) {
  constexpr auto op = "upsample_cross_entropy";
  const auto params = make_params(op, logits, target, weight, ignore_index, align_corners, label_smoothing);
  const at::Tensor dense = dense_logits(params, logits), dense_weight = sums_weight(params, weight);
  const at::Tensor targets = target.to(at::kLong).contiguous();
  const at::ScalarType label_type = default_label_type(params.classes);
  const auto of_sums = logits.options().dtype(sum_type(params.dtype));
  at::Tensor lse = at::empty(target.sizes(), of_sums);
  at::Tensor labels =
      at::empty(return_labels ? target.sizes() : at::IntArrayRef({0}), logits.options().dtype(label_type));
  void* const labels_data = return_labels ? labels.mutable_data_ptr() : nullptr;
  at::Tensor sums =
      at::empty({PSPFAST_ASK(logits, upsample_cross_entropy_partials, params), 3}, logits.options().dtype(at::kDouble));
  if (lse.numel() > 0) {
    PSPFAST_RUN(logits, upsample_cross_entropy, params, dense.const_data_ptr(), targets.const_data_ptr<int64_t>(),
                data_or_null(dense_weight), lse.mutable_data_ptr(), check_label_type(op, label_type, params.classes),
                labels_data, sums.mutable_data_ptr<double>());
  }
  const at::Tensor total = sums.sum(0);
  check_targets(op, total[2], targets, params);
  const at::Tensor weight_sum = total[1].to(of_sums.dtype());
  // Where nothing counts the loss is 0, not 0 / 0.
  const at::Tensor loss = at::where(total[1] != 0, total[0] / total[1], at::zeros_like(total[0])).to(of_sums.dtype());
  return {loss, lse, weight_sum, labels};
}

at::Tensor upsample_cross_entropy_backward(const at::Tensor& scale, const at::Tensor& logits, const at::Tensor& target,
                                           const std::optional<at::Tensor>& weight, const at::Tensor& lse,
                                           int64_t ignore_index, bool align_corners, double label_smoothing) {
  constexpr auto op = "upsample_cross_entropy_backward";
  const auto params = make_params(op, logits, target, weight, ignore_index, align_corners, label_smoothing);
  TORCH_CHECK_VALUE(lse.sizes() == target.sizes(), op, ": lse: expected shape ", target.sizes(), ", got ", lse.sizes());
  TORCH_CHECK_TYPE(lse.scalar_type() == sum_type(params.dtype), op, ": lse: expected ", sum_type(params.dtype),
                   ", got ", lse.scalar_type());
  TORCH_CHECK_VALUE(scale.numel() == 1, op, ": scale: expected one number, got shape ", scale.sizes());
  const at::Tensor dense = dense_logits(params, logits), dense_weight = sums_weight(params, weight);
  const at::Tensor targets = target.to(at::kLong).contiguous(), dense_lse = lse.contiguous();
  const at::Tensor dense_scale = scale.to(sum_type(params.dtype)).contiguous();
  at::Tensor grad_logits = at::empty_like(dense);
  if (grad_logits.numel() == 0) {
    return grad_logits;
  }
  at::Tensor workspace =
      at::empty({PSPFAST_ASK(logits, upsample_cross_entropy_workspace, params)}, logits.options().dtype(at::kByte));
  PSPFAST_RUN(logits, upsample_cross_entropy_backward, params, dense.const_data_ptr(),
              targets.const_data_ptr<int64_t>(), data_or_null(dense_weight), dense_lse.const_data_ptr(),
              dense_scale.const_data_ptr(), grad_logits.mutable_data_ptr(), workspace.mutable_data_ptr());
  return grad_logits;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "upsample_cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, bool align_corners,"
      " float label_smoothing, bool return_labels) -> (Tensor loss, Tensor lse, Tensor weight_sum, Tensor labels)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "upsample_cross_entropy_backward(Tensor scale, Tensor logits, Tensor target, Tensor? weight, Tensor lse,"
      " int ignore_index, bool align_corners, float label_smoothing) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("upsample_cross_entropy", &upsample_cross_entropy);
  m.impl("upsample_cross_entropy_backward", &upsample_cross_entropy_backward);
}

}  // namespace pspfast
