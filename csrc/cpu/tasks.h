// What the CPU kernels share in cutting work for threads and types.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "../dtype.h"

namespace pspfast::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <int V>
using Constant = std::integral_constant<int, V>;

// Scratch memory for numbers, not initialised. Aligned: a vector of 64 bytes across two cache lines takes twice as
// long.
constexpr auto kAlignment = std::align_val_t(64);

struct AlignedDelete {
  void operator()(void* data) const { ::operator delete[](data, kAlignment); }
};

template <class T>
using Scratch = std::unique_ptr<T[], AlignedDelete>;

template <class T>
Scratch<T> scratch(int64_t count) {
  return Scratch<T>(static_cast<T*>(::operator new[](count * sizeof(T), kAlignment)));
}

template <class T>
Scratch<T> zeros(int64_t count) {
  auto data = scratch<T>(count);
  std::fill_n(data.get(), count, T(0));
  return data;
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

// Calls f(i) for i in [0, count), in parallel.
template <class F>
void parallel_for(int64_t count, const F& f) {
  parallel_tasks(count, [&] { return [&](int64_t i) { f(i); }; });
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
