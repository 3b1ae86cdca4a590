// Sixteen lanes of float or double, loaded from and stored to any element type. for_each_isa.h includes this file once
// per instruction set, inside a namespace of that instruction set; hence no include and no guard.

constexpr int64_t kLanes = 16;

template <int V>
using Constant = std::integral_constant<int, V>;

// Sums are kept in float, for double in double.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

#define PSPFAST_INLINE static inline __attribute__((always_inline))

#if PSPFAST_ISA == PSPFAST_AVX512
constexpr int64_t kRegisterBytes = 64;
#elif PSPFAST_ISA == PSPFAST_AVX2
constexpr int64_t kRegisterBytes = 32;
#else
constexpr int64_t kRegisterBytes = 16;
#endif
#include "pair.inl"

template <class A>
using Lanes = VectorOf<A, kLanes>;

// A register's lanes of float or double from any element type.
template <class V>
PSPFAST_INLINE V load_register(const ElementOf<V>* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// bfloat16 is the upper half of a float.
template <class V>
PSPFAST_INLINE V load_register(const c10::BFloat16* p) {
  VectorOf<uint16_t, kLanesOf<V>> half;
  std::memcpy(&half, p, sizeof(half));
  return bit_cast<V>(__builtin_convertvector(half, VectorOf<uint32_t, kLanesOf<V>>) << 16);
}

template <class V>
PSPFAST_INLINE V load_register(const c10::Half* p) {
#if PSPFAST_ISA == PSPFAST_AVX512
  return bit_cast<V>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif PSPFAST_ISA == PSPFAST_AVX2
  return bit_cast<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return V{p[0], p[1], p[2], p[3]};
#endif
}

template <class V, class T>
PSPFAST_INLINE V load_vector(const T* p) {
  if constexpr (kIsPair<V>) {
    using Half = decltype(V::low);
    return {load_vector<Half>(p), load_vector<Half>(p + kLanesOf<Half>)};
  } else {
    return load_register<V>(p);
  }
}

template <class T>
PSPFAST_INLINE Lanes<Acc<T>> load(const T* p) {
  return load_vector<Lanes<Acc<T>>>(p);
}

template <class V>
PSPFAST_INLINE void store_register(ElementOf<V>* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

template <class V>
PSPFAST_INLINE void store_register(c10::BFloat16* p, V v) {
  const auto bits = bit_cast<VectorOf<uint32_t, kLanesOf<V>>>(v);
  // To nearest, ties to even; 0x7fc0 is the quiet NaN, which the addition could turn into an infinity.
  const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const auto is_nan = bit_cast<VectorOf<uint32_t, kLanesOf<V>>>(v != v);
  const auto half = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), VectorOf<uint16_t, kLanesOf<V>>);
  std::memcpy(p, &half, sizeof(half));
}

template <class V>
PSPFAST_INLINE void store_register(c10::Half* p, V v) {
#if PSPFAST_ISA == PSPFAST_AVX512
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif PSPFAST_ISA == PSPFAST_AVX2
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int64_t i = 0; i < kLanesOf<V>; ++i) p[i] = v[i];
#endif
}

template <class T, class V>
PSPFAST_INLINE void store(T* p, V v) {
  if constexpr (kIsPair<V>) {
    store(p, v.low);
    store(p + kLanesOf<V> / 2, v.high);
  } else {
    store_register(p, v);
  }
}

// The first n < 16 elements; the other lanes are zero and are not stored.
template <class T>
PSPFAST_INLINE Lanes<Acc<T>> load(const T* p, int64_t n) {
  T padded[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    padded[i] = p[i];
  }
  return load(padded);
}

template <class T>
PSPFAST_INLINE void store(T* p, Lanes<Acc<T>> v, int64_t n) {
  T padded[kLanes];
  store(padded, v);
  for (int64_t i = 0; i < n; ++i) {
    p[i] = padded[i];
  }
}

// The first elements of what is left of a row, a vector of them at most.
template <class T>
PSPFAST_INLINE Lanes<Acc<T>> load_some(const T* p, int64_t lanes) {
  return lanes >= kLanes ? load(p) : load(p, lanes);
}

template <class T>
PSPFAST_INLINE void store_some(T* p, Lanes<Acc<T>> v, int64_t lanes) {
  lanes >= kLanes ? store(p, v) : store(p, v, lanes);
}

template <class V>
PSPFAST_INLINE V relu(V v) {
  // Not a maximum: NaN stays NaN.
  return select(v < 0, V{}, v);
}

// Halves are added until one lane is left: a loop over lanes in memory is several times slower.
template <class V>
PSPFAST_INLINE auto sum(V v) {
  if constexpr (kLanesOf<V> == 2 && !kIsPair<V>) {
    return v[0] + v[1];
  } else {
    const auto of = halves(v);
    return sum(of.low + of.high);
  }
}

// The sums of four vectors.
template <class V>
PSPFAST_INLINE auto sum(V a, V b, V c, V d) {
  using A = ElementOf<V>;
#if PSPFAST_ISA == PSPFAST_AVX512
  if constexpr (std::is_same_v<A, float>) {
    // Each 128 bits become partial sums of a, b, c and d.
    const auto pairs = [](V v, V w) {
      const auto x = bit_cast<__m512>(v), y = bit_cast<__m512>(w);
      return bit_cast<__m512d>(bit_cast<V>(_mm512_unpacklo_ps(x, y)) + bit_cast<V>(_mm512_unpackhi_ps(x, y)));
    };
    const __m512d ab = pairs(a, b), cd = pairs(c, d);
    const V quads = bit_cast<V>(_mm512_unpacklo_pd(ab, cd)) + bit_cast<V>(_mm512_unpackhi_pd(ab, cd));
    struct Quarters {
      VectorOf<A, 4> of[4];
    };
    const auto quarters = bit_cast<Quarters>(quads);
    return (quarters.of[0] + quarters.of[2]) + (quarters.of[1] + quarters.of[3]);
  }
#elif PSPFAST_ISA == PSPFAST_AVX2
  if constexpr (std::is_same_v<A, float>) {
    const auto pairs = [](V v, V w) {
      return _mm256_hadd_ps(bit_cast<__m256>(v.low + v.high), bit_cast<__m256>(w.low + w.high));
    };
    // Each 128 bits become partial sums of a, b, c and d.
    const auto quads = halves(bit_cast<VectorOf<A, 8>>(_mm256_hadd_ps(pairs(a, b), pairs(c, d))));
    return quads.low + quads.high;
  }
#endif
  const A sums[] = {sum(a), sum(b), sum(c), sum(d)};
  return load_vector<VectorOf<A, 4>>(sums);
}

// i in lane i.
template <class A>
PSPFAST_INLINE Lanes<A> lane_numbers() {
  constexpr A numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load_vector<Lanes<A>>(numbers);
}

// A vector's lanes in memory.
template <class V>
PSPFAST_INLINE auto array_of(V v) {
  return bit_cast<std::array<ElementOf<V>, kLanesOf<V>>>(v);
}

// Whether any lane's mask is set.
template <class M>
PSPFAST_INLINE bool any(M mask) {
  uint64_t bits = 0;
  for (const uint64_t word : bit_cast<std::array<uint64_t, sizeof(M) / sizeof(uint64_t)>>(mask)) bits |= word;
  return bits != 0;
}

// from[index[i]] in lane i.
template <class A, class Index>
PSPFAST_INLINE auto gather(const A* from, Index index) {
  using V = VectorOf<A, kLanesOf<Index>>;
#if PSPFAST_ISA == PSPFAST_AVX512
  if constexpr (std::is_same_v<A, float>) {
    return bit_cast<V>(_mm512_i32gather_ps(bit_cast<__m512i>(index), from, sizeof(A)));
  }
#endif
  A gathered[kLanesOf<V>];
  const auto indices = array_of(index);
  for (int64_t i = 0; i < kLanesOf<V>; ++i) gathered[i] = from[indices[i]];
  return load_vector<V>(gathered);
}

// v's element index[i] in lane i.
template <class V>
PSPFAST_INLINE V pick(V v, const int32_t* index) {
  using A = ElementOf<V>;
#if PSPFAST_ISA == PSPFAST_AVX512
  if constexpr (std::is_same_v<A, float>) {
    return bit_cast<V>(_mm512_permutexvar_ps(_mm512_loadu_si512(index), bit_cast<__m512>(v)));
  }
#elif PSPFAST_ISA == PSPFAST_AVX2
  if constexpr (std::is_same_v<A, float>) {
    const auto half = [&](const int32_t* index) {
      const __m256i from = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
      // These take the lower three bits of an index; the fourth is made the sign, which blendv takes.
      const __m256 low = _mm256_permutevar8x32_ps(bit_cast<__m256>(v.low), from);
      const __m256 high = _mm256_permutevar8x32_ps(bit_cast<__m256>(v.high), from);
      const __m256 picked = _mm256_blendv_ps(low, high, bit_cast<__m256>(_mm256_slli_epi32(from, 28)));
      return bit_cast<VectorOf<A, 8>>(picked);
    };
    return V{half(index), half(index + 8)};
  }
#endif
  const auto from = array_of(v);
  A to[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) to[i] = from[index[i]];
  return load(to);
}
