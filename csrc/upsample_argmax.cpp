// upsample_argmax: schema, checks, allocation, choice of the CPU or CUDA kernel.
#include "upsample_argmax.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "dispatch.h"
#include "upsample_checks.h"

namespace pspfast {
namespace {

at::Tensor upsample_argmax(const at::Tensor& logits, int64_t height, int64_t width, bool align_corners,
                           std::optional<at::ScalarType> dtype) {
  constexpr auto op = "upsample_argmax";
  const UpsampleParams params = make_upsample_params(op, logits, height, width, align_corners);
  const at::ScalarType label_dtype = dtype.value_or(default_label_type(params.classes));
  const LabelType label_type = check_label_type(op, label_dtype, params.classes);
  const at::Tensor dense = dense_logits(params, logits);
  at::Tensor labels = at::empty({params.batch, height, width}, logits.options().dtype(label_dtype));
  if (labels.numel() == 0) {
    return labels;
  }
  PSPFAST_RUN(logits, upsample_argmax, params, dense.const_data_ptr(), label_type, labels.mutable_data_ptr());
  return labels;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def("upsample_argmax(Tensor logits, SymInt height, SymInt width, bool align_corners, ScalarType? dtype) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

PSPFAST_LIBRARY_IMPL(m) { m.impl("upsample_argmax", &upsample_argmax); }

}  // namespace pspfast
