// Linked with a file of ../emulation that was compiled with -fsanitize=kernel-address: the functions that the
// sanitizer calls before accesses. They hand those of global memory to the caches, warp by warp.
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "caches.h"
#include "scheduler.h"

namespace {

struct Access {
  uint64_t address;
  const void* instruction;
  uint32_t bytes;
  bool store;
};

// Tensors lie between these; tools/network_calls/call.py gives them their places.
constexpr uint64_t kTensorsBegin = 1ull << 44, kTensorsEnd = 1ull << 46;

std::unique_ptr<traffic::Caches> caches;
std::vector<traffic::Counts> launch_counts;
// Of each thread of the block since the last barrier.
std::vector<Access> traces[emulation::kMaxThreads];
std::vector<std::pair<void*, size_t>> reserved;

bool is_global(uint64_t address) {
  const auto& [begin, bytes] = emulation::launcher_memory;
  return (kTensorsBegin <= address && address < kTensorsEnd) || address - reinterpret_cast<uint64_t>(begin) < bytes;
}

void note(uint64_t address, uint32_t bytes, bool store, const void* instruction) {
  if (caches == nullptr || !is_global(address)) return;
  const auto thread = emulation::current->running - emulation::current->fibers.data();
  traces[thread].push_back({address, instruction, bytes, store});
}

// One instruction of a warp: of the threads that have come least far, the first's, and all others' who are at it.
// Returns whether there was any.
bool replay_one(unsigned first, unsigned last, size_t* done) {
  unsigned leader = last;
  for (unsigned i = first; i < last; ++i) {
    if (done[i] < traces[i].size() && (leader == last || done[i] < done[leader])) leader = i;
  }
  if (leader == last) return false;
  const Access of_leader = traces[leader][done[leader]];
  caches->begin_request();
  for (unsigned i = leader; i < last; ++i) {
    if (done[i] == traces[i].size()) continue;
    const Access& access = traces[i][done[i]];
    if (access.instruction != of_leader.instruction) continue;
    caches->access(access.address, access.bytes, access.store);
    ++done[i];
  }
  return true;
}

// The warps take turns.
void replay() {
  const unsigned threads = emulation::current->fibers.size();
  size_t done[emulation::kMaxThreads] = {};
  for (bool any = true; any;) {
    any = false;
    for (unsigned first = 0; first < threads; first += emulation::kWarpSize) {
      any |= replay_one(first, std::min(first + emulation::kWarpSize, threads), done);
    }
  }
  for (unsigned i = 0; i < threads; ++i) traces[i].clear();
}

void observe(emulation::Event event) {
  if (caches == nullptr) return;
  if (event == emulation::Event::kLaunch) {
    caches->begin_launch();
  } else {
    replay();
    if (event == emulation::Event::kBlockEnd) caches->begin_block();
    if (event == emulation::Event::kLaunchEnd) launch_counts.push_back(caches->counts());
  }
}

}  // namespace

extern "C" {

// Counts launches from now on.
void begin_counting(int64_t l1_bytes, int64_t l2_bytes) {
  emulation::observer = observe;
  caches = std::make_unique<traffic::Caches>(l1_bytes, l2_bytes);
}

// Memory of zeros at this address, until counting ends.
int reserve(void* address, int64_t bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  void* const got = mmap(address, bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (got != address) return 1;
  reserved.emplace_back(got, bytes);
  return 0;
}

// Fills `counts` and returns how many launches there were, at most `room` of them.
int64_t end_counting(traffic::Counts* counts, int64_t room) {
  const int64_t count = std::min<int64_t>(room, launch_counts.size());
  std::copy_n(launch_counts.begin(), count, counts);
  launch_counts.clear();
  caches.reset();
  for (const auto& [begin, bytes] : reserved) munmap(begin, bytes);
  reserved.clear();
  return count;
}

#define HOOKS(bytes)                                                                                                \
  void __asan_load##bytes##_noabort(uint64_t address) { note(address, bytes, false, __builtin_return_address(0)); } \
  void __asan_store##bytes##_noabort(uint64_t address) { note(address, bytes, true, __builtin_return_address(0)); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
#undef HOOKS

void __asan_loadN_noabort(uint64_t address, size_t bytes) { note(address, bytes, false, __builtin_return_address(0)); }
void __asan_storeN_noabort(uint64_t address, size_t bytes) { note(address, bytes, true, __builtin_return_address(0)); }
void __asan_handle_no_return() {}
void __asan_before_dynamic_init(const char*) {}
void __asan_after_dynamic_init() {}
}
