// The epilogue of dilated_conv2d on the CPU where the library convolves: how the elements are cut for threads.
#include "../winograd.h"
#include "dispatch_dtype.h"
#include "parallel.h"

#define PSPFAST_KERNELS "dilated_conv2d.inl"
#include "for_each_isa.h"

namespace pspfast::cpu {

void add_relu(DType dtype, int64_t count, const void* residual, bool relu, void* out) {
  // So many elements are worth a task.
  constexpr int64_t kElements = 16384;
  dispatch_dtype(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_for(ceil_div(count, kElements), [&](int64_t task) {
      const int64_t first = task * kElements;
      PSPFAST_CALL(add_relu_row, residual ? static_cast<const T*>(residual) + first : nullptr,
                   static_cast<T*>(out) + first, std::min(kElements, count - first), relu);
    });
  });
}

}  // namespace pspfast::cpu
