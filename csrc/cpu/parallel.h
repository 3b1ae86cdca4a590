// Loops over independent tasks, on torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

namespace pspfast::cpu {

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

}  // namespace pspfast::cpu
