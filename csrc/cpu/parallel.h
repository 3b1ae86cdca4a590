// Loops over independent tasks, on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace pspfast::cpu {

inline int64_t thread_count() { return torch::stable::get_num_threads(); }

// Calls task(i) for i in [0, count), in parallel. `make_task` is called once a thread and owns the thread's scratch.
template <class MakeTask>
void parallel_tasks(int64_t count, const MakeTask& make_task) {
  // Torch's C interface would lose an exception's type: the first is kept and thrown here.
  std::exception_ptr thrown;
  std::once_flag first;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      const auto task = make_task();
      for (int64_t i = begin; i < end; ++i) {
        task(i);
      }
    } catch (...) {
      std::call_once(first, [&] { thrown = std::current_exception(); });
    }
  });
  if (thrown) std::rethrow_exception(thrown);
}

// Calls f(i) for i in [0, count), in parallel.
template <class F>
void parallel_for(int64_t count, const F& f) {
  parallel_tasks(count, [&] { return [&](int64_t i) { f(i); }; });
}

}  // namespace pspfast::cpu
