// upsample_softmax on the CPU: how the work is cut for threads. The loops are in upsample_softmax.inl.
#include "../upsample_softmax.h"

#include "dispatch_dtype.h"
#include "parallel.h"
#include "scratch.h"
#include "upsample.h"

#define PSPFAST_KERNELS "upsample_softmax.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {
namespace {

constexpr int64_t kLanes = baseline::kLanes;

template <class T>
using Acc = baseline::Acc<T>;

template <class T>
void softmax(const UpsampleParams& p, const SoftmaxOutput& output, const T* logits, Acc<T>* probabilities) {
  using A = Acc<T>;
  const AxisSegments<A> rows(p.height, p.rows, p.align_corners), cols(p.width, p.cols, p.align_corners);
  parallel_tasks(p.batch * p.rows, [&] {
    return [&, buffer = scratch<A>(4 * p.classes * kLanes)](int64_t task) {
      const int64_t n = task / p.rows;
      PSPFAST_CALL(softmax_of_rows, p, output, rows, cols, task % p.rows, logits + n * image_size(p),
                   logits + p.batch * image_size(p), probabilities + n * output.image_stride, buffer.get());
    };
  });
}

}  // namespace

void upsample_softmax(const UpsampleParams& params, const SoftmaxOutput& output, const void* logits,
                      void* probabilities) {
  dispatch_dtype(params.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    softmax(params, output, static_cast<const T*>(logits), static_cast<Acc<T>*>(probabilities));
  });
}

}  // namespace pspfast::cpu
