// upsample_softmax: schemas, checks, allocation, choice of the CPU or CUDA kernel.
#include "upsample_softmax.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "dispatch.h"
#include "upsample_checks.h"

namespace pspfast {
namespace {

void call_softmax(const UpsampleParams& params, const at::Tensor& logits, bool flip, bool add, double weight,
                  at::Tensor& out) {
  if (out.numel() == 0) {
    return;
  }
  const at::Tensor dense = dense_logits(params, logits);
  const SoftmaxOutput output{out.stride(0), out.stride(1), out.stride(2), out.stride(3), flip, add, weight};
  PSPFAST_RUN(logits, upsample_softmax, params, output, dense.const_data_ptr(), out.mutable_data_ptr());
}

at::Tensor upsample_softmax(const at::Tensor& logits, int64_t height, int64_t width, bool align_corners, bool flip,
                            double weight) {
  const UpsampleParams params = make_upsample_params("upsample_softmax", logits, height, width, align_corners);
  at::Tensor out =
      at::empty({params.batch, params.classes, height, width}, logits.options().dtype(sum_type(params.dtype)));
  call_softmax(params, logits, flip, /*add=*/false, weight, out);
  return out;
}

void upsample_softmax_add(at::Tensor& out, const at::Tensor& logits, bool align_corners, bool flip, double weight) {
  constexpr auto op = "upsample_softmax";
  TORCH_CHECK_VALUE(
      out.dim() == 4 && logits.dim() == 4 && out.size(0) == logits.size(0) && out.size(1) == logits.size(1), op,
      ": out: expected [N, K, H, W] with N and K of logits ", logits.sizes(), ", got shape ", out.sizes());
  TORCH_CHECK_VALUE(out.device() == logits.device(), op, ": out: expected device ", logits.device(), " as logits, got ",
                    out.device());
  const UpsampleParams params = make_upsample_params(op, logits, out.size(2), out.size(3), align_corners);
  TORCH_CHECK_TYPE(out.scalar_type() == sum_type(params.dtype), op, ": out: expected ", sum_type(params.dtype),
                   ", got ", out.scalar_type());
  call_softmax(params, logits, flip, /*add=*/true, weight, out);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "upsample_softmax(Tensor logits, SymInt height, SymInt width, bool align_corners, bool flip, float weight)"
      " -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("upsample_softmax_add(Tensor(a!) out, Tensor logits, bool align_corners, bool flip, float weight) -> ()",
        {at::Tag::pt2_compliant_tag});
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("upsample_softmax", &upsample_softmax);
  m.impl("upsample_softmax_add", &upsample_softmax_add);
}

}  // namespace pspfast
