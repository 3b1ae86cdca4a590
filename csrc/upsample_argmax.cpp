// upsample_argmax: schema, checks, allocation, choice of the CPU or CUDA kernel.
#include "upsample_argmax.h"

#include "dispatch.h"
#include "upsample_checks.h"

namespace pspfast {
namespace {

Tensor upsample_argmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners,
                       std::optional<ScalarType> dtype) {
  constexpr auto op = "upsample_argmax";
  const UpsampleParams params = make_upsample_params(op, logits, height, width, align_corners);
  const ScalarType label_dtype = dtype.value_or(default_label_type(params.classes));
  const LabelType label_type = check_label_type(op, label_dtype, params.classes);
  const Tensor map = dense(logits), labels = new_tensor({params.batch, height, width}, label_dtype, logits);
  if (labels.numel() == 0) {
    return labels;
  }
  PSPFAST_RUN(logits, upsample_argmax, params, map.const_data_ptr(), label_type, labels.mutable_data_ptr());
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("upsample_argmax(Tensor logits, SymInt height, SymInt width, bool align_corners, ScalarType? dtype) -> Tensor");
}

PSPFAST_LIBRARY_IMPL(m) { m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax)); }

}  // namespace pspfast
