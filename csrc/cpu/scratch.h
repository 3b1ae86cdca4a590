// Memory that a kernel works in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace pspfast::cpu {

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

}  // namespace pspfast::cpu
