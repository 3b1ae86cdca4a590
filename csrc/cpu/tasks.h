// What the CPU kernels share in cutting work for threads and types.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <memory>
#include <type_traits>

#include "../dtype.h"

namespace pspfast::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <int V>
using Constant = std::integral_constant<int, V>;

template <class T>
std::unique_ptr<T[]> scratch(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// Calls task(i) for i in [0, count), in parallel. `make_task` is called once a thread and owns the thread's scratch.
template <class MakeTask>
void parallel_tasks(int64_t count, const MakeTask& make_task) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const auto task = make_task();
    for (int64_t i = begin; i < end; ++i) {
      task(i);
    }
  });
}

// Calls f with a null pointer of the element type.
template <class F>
void dispatch(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32: return f(static_cast<float*>(nullptr));
    case DType::kFloat16: return f(static_cast<c10::Half*>(nullptr));
    case DType::kBFloat16: return f(static_cast<c10::BFloat16*>(nullptr));
    case DType::kFloat64: return f(static_cast<double*>(nullptr));
  }
}

}  // namespace pspfast::cpu
