// upsample_softmax: schemas, checks, allocation, choice of the CPU or CUDA kernel.
#include "upsample_softmax.h"

#include "dispatch.h"
#include "upsample_checks.h"

namespace pspfast {
namespace {

void call_softmax(const UpsampleParams& params, const Tensor& logits, bool flip, bool add, double weight,
                  const Tensor& out) {
  if (out.numel() == 0) {
    return;
  }
  const Tensor map = dense(logits);
  const SoftmaxOutput output{out.stride(0), out.stride(1), out.stride(2), out.stride(3), flip, add, weight};
  PSPFAST_RUN(logits, upsample_softmax, params, output, map.const_data_ptr(), out.mutable_data_ptr());
}

Tensor upsample_softmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners, bool flip,
                        double weight) {
  const UpsampleParams params = make_upsample_params("upsample_softmax", logits, height, width, align_corners);
  const Tensor out = new_tensor({params.batch, params.classes, height, width}, sum_type(params.dtype), logits);
  call_softmax(params, logits, flip, /*add=*/false, weight, out);
  return out;
}

void upsample_softmax_add(const Tensor& out, const Tensor& logits, bool align_corners, bool flip, double weight) {
  constexpr auto op = "upsample_softmax";
  PSPFAST_CHECK(out.dim() == 4 && logits.dim() == 4 && out.size(0) == logits.size(0) && out.size(1) == logits.size(1),
                op, ": out: expected [N, K, H, W] with N and K of logits ", logits.sizes(), ", got shape ",
                out.sizes());
  check_device(op, "out", out, "logits", logits);
  const UpsampleParams params = make_upsample_params(op, logits, out.size(2), out.size(3), align_corners);
  PSPFAST_CHECK(out.scalar_type() == sum_type(params.dtype), op, ": out: expected ", sum_type(params.dtype), ", got ",
                out.scalar_type());
  call_softmax(params, logits, flip, /*add=*/true, weight, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pspfast, m) {
  m.def(
      "upsample_softmax(Tensor logits, SymInt height, SymInt width, bool align_corners, bool flip, float weight)"
      " -> Tensor");
  m.def("upsample_softmax_add(Tensor(a!) out, Tensor logits, bool align_corners, bool flip, float weight) -> ()");
}

PSPFAST_LIBRARY_IMPL(m) {
  m.impl("upsample_softmax", TORCH_BOX(&upsample_softmax));
  m.impl("upsample_softmax_add", TORCH_BOX(&upsample_softmax_add));
}

}  // namespace pspfast
