// upsample_argmax on the CPU: how the work is cut for threads. The loops are in upsample_argmax.inl.
#include "../upsample_argmax.h"

#include "dispatch_dtype.h"
#include "parallel.h"
#include "scratch.h"
#include "upsample.h"

#define PSPFAST_KERNELS "upsample_argmax.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;

template <class T>
using Acc = baseline::Acc<T>;

template <class T>
void argmax(const UpsampleParams& p, const T* logits, LabelType type, void* labels) {
  using A = Acc<T>;
  const AxisSegments<A> rows(p.height, p.rows, p.align_corners), cols(p.width, p.cols, p.align_corners);
  parallel_tasks(p.batch * p.rows, [&] {
    return [&, buffer = scratch<A>(3 * p.classes * kLanes)](int64_t task) {
      const int64_t n = task / p.rows;
      PSPFAST_CALL(argmax_of_rows, p, rows, cols, task % p.rows, logits + n * image_size(p),
                   logits + p.batch * image_size(p), LabelOutput{type, labels, n * p.height * p.width}, buffer.get());
    };
  });
}

}  // namespace

void upsample_argmax(const UpsampleParams& params, const void* logits, LabelType label_type, void* labels) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    argmax(params, static_cast<const T*>(logits), label_type, labels);
  });
}

}  // namespace pspfast::cpu
