// Sixteen lanes of float or double, loaded from and stored to any element type. Included by for_each_level.h once
// per vector level, inside that level's namespace; hence no include and no guard.

constexpr int64_t kLanes = 16;

// Sums are kept in float, for double in double.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class A>
struct LanesOf {
  typedef A type __attribute__((vector_size(kLanes * sizeof(A))));
};
template <class A>
using Lanes = typename LanesOf<A>::type;

#define PSPFAST_INLINE static inline __attribute__((always_inline))

template <class To, class From>
PSPFAST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

PSPFAST_INLINE Lanes<float> load(const float* p) {
  Lanes<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

PSPFAST_INLINE Lanes<double> load(const double* p) {
  Lanes<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// bfloat16 is the upper half of a float.
PSPFAST_INLINE Lanes<float> load(const c10::BFloat16* p) {
  Lanes<uint16_t> half;
  std::memcpy(&half, p, sizeof(half));
  return bit_cast<Lanes<float>>(__builtin_convertvector(half, Lanes<uint32_t>) << 16);
}

PSPFAST_INLINE Lanes<float> load(const c10::Half* p) {
#if PSPFAST_LEVEL == PSPFAST_AVX512
  return bit_cast<Lanes<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
  float values[kLanes];
#if PSPFAST_LEVEL == PSPFAST_AVX2
  for (int i = 0; i < kLanes; i += 8) {
    _mm256_storeu_ps(values + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i))));
  }
#else
  for (int i = 0; i < kLanes; ++i) {
    values[i] = p[i];
  }
#endif
  return load(values);
#endif
}

PSPFAST_INLINE void store(float* p, Lanes<float> v) { std::memcpy(p, &v, sizeof(v)); }
PSPFAST_INLINE void store(double* p, Lanes<double> v) { std::memcpy(p, &v, sizeof(v)); }

PSPFAST_INLINE void store(c10::BFloat16* p, Lanes<float> v) {
  const auto bits = bit_cast<Lanes<uint32_t>>(v);
  // To nearest, ties to even; 0x7fc0 is the quiet NaN, which the addition could turn into an infinity.
  const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const auto is_nan = bit_cast<Lanes<uint32_t>>(v != v);
  const auto half = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), Lanes<uint16_t>);
  std::memcpy(p, &half, sizeof(half));
}

PSPFAST_INLINE void store(c10::Half* p, Lanes<float> v) {
#if PSPFAST_LEVEL == PSPFAST_AVX512
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  float values[kLanes];
  store(values, v);
#if PSPFAST_LEVEL == PSPFAST_AVX2
  for (int i = 0; i < kLanes; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#else
  for (int i = 0; i < kLanes; ++i) {
    p[i] = values[i];
  }
#endif
#endif
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

template <class V>
PSPFAST_INLINE V relu(V v) {
  // Not a maximum: NaN stays NaN.
  return v < 0 ? V{} : v;
}

template <class V>
PSPFAST_INLINE auto sum(V v) {
  std::remove_cvref_t<decltype(v[0])> lanes[kLanes];
  store(lanes, v);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// v's element index[i] in lane i.
template <class V>
PSPFAST_INLINE V pick(V v, const int32_t* index) {
  using A = std::remove_cvref_t<decltype(v[0])>;
#if PSPFAST_LEVEL == PSPFAST_AVX512
  if constexpr (std::is_same_v<A, float>) {
    return bit_cast<V>(_mm512_permutexvar_ps(_mm512_loadu_si512(index), bit_cast<__m512>(v)));
  }
#endif
  A from[kLanes], to[kLanes];
  store(from, v);
  for (int64_t i = 0; i < kLanes; ++i) to[i] = from[index[i]];
  return load(to);
}

// exp(x) for x <= 0, to 2 units of the last place; 0 below -87, where float has no normal numbers.
PSPFAST_INLINE Lanes<float> exp_of_negative(Lanes<float> x) {
  constexpr float kLeast = -87.f;
  const auto too_small = x < kLeast;
  // x = n log 2 + f with |f| <= log(2) / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. log 2
  // is the sum of two constants, the first of 10 bits, whose product with n is exact.
  constexpr float kRound = 12582912.f;
  const Lanes<float> shifted = x * 1.44269504f + kRound;
  const Lanes<float> n = shifted - kRound;
  const Lanes<float> f = x - n * 0.693359375f + n * 2.12194440e-4f;
  // The polynomial of degree 6 with the smallest relative error there, 2e-9.
  Lanes<float> power = f * 1.38368356e-3f + 8.37482406e-3f;
  power = power * f + 4.16682262e-2f;
  power = power * f + 0.16666420f;
  power = power * f + 0.49999992f;
  power = power * f + 1.00000004f;
  power = power * f + 1.f;
  const auto scale = bit_cast<Lanes<float>>((bit_cast<Lanes<int32_t>>(shifted) << 23) + (127 << 23));
  return too_small ? Lanes<float>{} : power * scale;
}

PSPFAST_INLINE Lanes<double> exp_of_negative(Lanes<double> x) {
  for (int64_t i = 0; i < kLanes; ++i) x[i] = std::exp(x[i]);
  return x;
}
