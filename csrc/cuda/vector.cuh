// Element types as float, and 16-byte accesses of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>

namespace pspfast::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

constexpr int kVectorBytes = 16;
template <typename T>
constexpr int kVectorSize = kVectorBytes / sizeof(T);

template <typename T, int Size>
struct Vector {
  T data[Size];
};

// One access for all elements: of a plain copy the compiler makes several where elements have 16 bits.
template <int Size, typename T>
__device__ inline Vector<T, Size> load(const T* from) {
  Vector<T, Size> vector;
  if constexpr (sizeof(vector) == kVectorBytes) {
    const uint4 word = *reinterpret_cast<const uint4*>(from);
    memcpy(&vector, &word, kVectorBytes);
  } else {
    static_assert(Size == 1);
    vector.data[0] = *from;
  }
  return vector;
}

// `to` lies in global memory if Global, else in shared.
template <bool Global, typename T, int Size>
__device__ inline void store(T* to, const Vector<T, Size>& vector) {
  if constexpr (sizeof(vector) == kVectorBytes) {
    uint4 word;
    memcpy(&word, &vector, kVectorBytes);
    if constexpr (Global) {
      // The default policy, by its intrinsic: nvcc 13.0 makes four stores of an assignment in the backward kernels.
      __stwb(reinterpret_cast<uint4*>(to), word);
    } else {
      *reinterpret_cast<uint4*>(to) = word;
    }
  } else {
    static_assert(Size == 1);
    *to = vector.data[0];
  }
}

inline bool is_vector_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0; }

}  // namespace pspfast::cuda
