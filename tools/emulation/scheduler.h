// Runs the threads of a block as fibers: one until a barrier or a shuffle stops it, then the next. Neighbouring blocks
// take their threads in opposite order, so a value read before its barrier is missed in one of them, and the shared
// memory of every block starts as NaN. Under -fsanitize=thread a fiber is a thread of its own and only barriers order
// it: a left-out one is reported. A barrier that some threads never reach fails the launch.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
using cudaStream_t = struct CUstream_st*;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kStackBytes = 128 * 1024;
// Of blocks along x only the last runs, with EMULATION_LAST_BLOCK: work on tensors too large to be gone through.
#ifdef EMULATION_LAST_BLOCK
constexpr bool kLastBlock = true;
#else
constexpr bool kLastBlock = false;
#endif

// The scheduler's own state, of which thread sanitizer must see neither the accesses nor an order that they make.
#define EMULATION_HIDDEN __attribute__((no_sanitize("thread"), noinline))

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 thread;
  State state;
  unsigned warp, lane, mask;
  std::uint64_t exchanged;
#ifdef __SANITIZE_THREAD__
  void* sanitizer = __tsan_create_fiber(0);
  ~Fiber() { __tsan_destroy_fiber(sanitizer); }
#endif
};

struct Launch {
  std::function<void()> kernel;
  dim3 grid, block, block_index{};
  std::unique_ptr<unsigned char[]> shared;
  std::vector<Fiber>& fibers;
  Fiber* running = nullptr;
  ucontext_t scheduler{};
#ifdef __SANITIZE_THREAD__
  void* sanitizer = __tsan_get_current_fiber();
#endif
};

inline Launch* current = nullptr;

// What may be watched; tools/traffic counts what kernels read and write.
enum class Event { kLaunch, kBlockBarrier, kBlockEnd, kLaunchEnd };
inline void (*observer)(Event) = nullptr;

// Memory that a launcher is lent for sums, of NaN.
inline std::pair<const void*, std::size_t> launcher_memory;
class Sums {
 public:
  explicit Sums(std::size_t count) : sums_(count, NAN) { launcher_memory = {sums_.data(), count * sizeof(float)}; }
  ~Sums() { launcher_memory = {}; }
  float* data() { return sums_.data(); }

 private:
  std::vector<float> sums_;
};

inline cudaError_t last_error = cudaSuccess;

EMULATION_HIDDEN inline void resume(Fiber& fiber) {
  current->running = &fiber;
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&current->scheduler, &fiber.context);
}

EMULATION_HIDDEN inline void suspend(State state, unsigned mask = 0) {
  Fiber& fiber = *current->running;
  fiber.state = state;
  fiber.mask = mask;
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(current->sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&fiber.context, &current->scheduler);
}

EMULATION_HIDDEN inline void run_fiber() {
  current->kernel();
  suspend(State::kDone);
}

// Orders, for thread sanitizer, what these threads of [first, last) did before this call and what they do after it;
// with_host orders the launch's caller too.
EMULATION_HIDDEN inline void synchronise([[maybe_unused]] unsigned first, [[maybe_unused]] unsigned last,
                                         [[maybe_unused]] unsigned lanes, [[maybe_unused]] bool with_host = false) {
#ifdef __SANITIZE_THREAD__
  // Plain loops: the library's iterators would be watched.
  void* members[kMaxThreads + 1];
  unsigned count = 0;
  for (unsigned i = first; i < last; ++i) {
    if (lanes >> current->fibers[i].lane & 1) members[count++] = current->fibers[i].sanitizer;
  }
  if (with_host) members[count++] = current->sanitizer;
  // An object of the first member: the clocks that it keeps from earlier calls are known to all who meet here.
  void* const meeting = &current->fibers[first + std::countr_zero(lanes)].exchanged;
  for (unsigned i = 0; i < 2 * count; ++i) {
    __tsan_switch_to_fiber(members[i % count], __tsan_switch_to_fiber_no_sync);
    if (i < count) {
      __tsan_release(meeting);
    } else {
      __tsan_acquire(meeting);
    }
  }
  __tsan_switch_to_fiber(current->sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
}

EMULATION_HIDDEN inline bool all_wait(unsigned first, unsigned last, State state, unsigned lanes, unsigned mask) {
  for (unsigned i = first; i < last; ++i) {
    const Fiber& fiber = current->fibers[i];
    if (!(lanes >> fiber.lane & 1) || fiber.state == State::kDone) continue;
    if (fiber.state != state || fiber.mask != mask) return false;
  }
  return true;
}

// Lets the threads go on whose barrier is complete; false if there are none.
EMULATION_HIDDEN inline bool release_barriers() {
  auto& fibers = current->fibers;
  const unsigned count = fibers.size();
  bool released = false;
  if (all_wait(0, count, State::kAtBlockBarrier, ~0u, 0)) {
    for (Fiber& fiber : fibers) {
      if (fiber.state != State::kAtBlockBarrier) continue;
      fiber.state = State::kReady;
      released = true;
    }
    synchronise(0, count, ~0u);
    if (observer != nullptr && released) observer(Event::kBlockBarrier);
  }
  for (unsigned i = 0; i < count; ++i) {
    if (fibers[i].state != State::kAtWarpBarrier) continue;
    const unsigned first = fibers[i].warp * kWarpSize;
    const unsigned last = std::min(first + kWarpSize, count);
    const unsigned mask = fibers[i].mask;
    if (!all_wait(first, last, State::kAtWarpBarrier, mask, mask)) continue;
    for (unsigned j = first; j < last; ++j) {
      if (mask >> fibers[j].lane & 1 && fibers[j].state == State::kAtWarpBarrier) fibers[j].state = State::kReady;
    }
    synchronise(first, last, mask);
    released = true;
  }
  return released;
}

EMULATION_HIDDEN inline bool run_block(bool backwards) {
  auto& fibers = current->fibers;
  const unsigned count = fibers.size();
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    fiber.state = State::kReady;
    fiber.warp = i / kWarpSize;
    fiber.lane = i % kWarpSize;
    fiber.thread = {i % current->block.x, i / current->block.x % current->block.y,
                    i / (current->block.x * current->block.y)};
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStackBytes};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  synchronise(0, count, ~0u, true);
  do {
    for (unsigned i = 0; i < count; ++i) {
      Fiber& fiber = fibers[backwards ? count - 1 - i : i];
      if (fiber.state == State::kReady) resume(fiber);
    }
  } while (release_barriers());
  synchronise(0, count, ~0u, true);
  if (observer != nullptr) observer(Event::kBlockEnd);
  return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return fiber.state == State::kDone; });
}

#ifndef EMULATION_SHARED_BYTES
#define EMULATION_SHARED_BYTES (228 * 1024)
#endif
// Of an H100: shared memory of a multiprocessor, and what the system keeps of each block's.
constexpr int kSharedBytes = EMULATION_SHARED_BYTES, kReservedBytes = 1024;

// Dynamic shared memory that kernels may use, if it is more than the default.
inline std::map<const void*, int> allowed_shared_bytes;

template <typename Kernel>
const void* address_of(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

inline void launch(const void* address, std::function<void()> kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                   cudaStream_t) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || grid.x == 0 || grid.x > 0x7fffffff || grid.y == 0 || grid.y > 65535 ||
      grid.z == 0 || grid.z > 65535 ||
      shared_bytes > static_cast<std::size_t>(std::max(48 * 1024, allowed_shared_bytes[address]))) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  static std::vector<Fiber> fibers;
  if (fibers.size() != threads) fibers = std::vector<Fiber>(threads);
  Launch state{.kernel = std::move(kernel),
               .grid = grid,
               .block = block,
               // Exactly as long as asked for: address sanitizer reports what lies behind it.
               .shared = std::make_unique<unsigned char[]>(shared_bytes),
               .fibers = fibers};
  current = &state;
  if (observer != nullptr) observer(Event::kLaunch);
  unsigned index = 0;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = kLastBlock ? grid.x - 1 : 0; x < grid.x; ++x, ++index) {
        state.block_index = {x, y, z};
        std::memset(state.shared.get(), 0xff, shared_bytes);  // NaN in every floating-point type
        if (!run_block(index % 2 == 1)) {
          std::fprintf(stderr, "emulation: a barrier was not reached by all threads of block (%u, %u, %u)\n", x, y, z);
          last_error = cudaErrorLaunchFailure;
          current = nullptr;
          return;
        }
      }
    }
  }
  if (observer != nullptr) observer(Event::kLaunchEnd);
  current = nullptr;
}

EMULATION_HIDDEN inline unsigned char* shared_memory() { return current->shared.get(); }
EMULATION_HIDDEN inline void exchange(std::uint64_t bits) { current->running->exchanged = bits; }
EMULATION_HIDDEN inline std::uint64_t exchanged_by(unsigned lane) {
  return current->fibers[current->running->warp * kWarpSize + lane].exchanged;
}
EMULATION_HIDDEN inline unsigned running_lane() { return current->running->lane; }

}  // namespace emulation
