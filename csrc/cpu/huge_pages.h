// Huge pages for memory that a kernel is about to fill.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pspfast::cpu {

// Asks for huge pages under a large fresh buffer, which halves or better the time of filling it for the first time:
// page faults on 4 KB pages cost more than the writes. glibc maps every allocation above 32 MiB anew (its
// DEFAULT_MMAP_THRESHOLD_MAX) and recycles smaller ones, whose pages are there already. Only advice: errors mean
// that the pages stay small.
inline void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kMapped = size_t(32) << 20;
  constexpr uintptr_t kPage = 4096;
  if (bytes > kMapped) {
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
}

}  // namespace pspfast::cpu
