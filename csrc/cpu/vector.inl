// Sixteen lanes of float or double, loaded from and stored to any element type. Included by for_each_level.h once
// per vector level, inside that level's namespace; hence no include and no guard.

constexpr int64_t kLanes = 16;

// Sums are kept in float, for double in double.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class A, int64_t N>
struct VectorOfType {
  typedef A type __attribute__((vector_size(N * sizeof(A))));
};
template <class A, int64_t N>
using VectorOf = typename VectorOfType<A, N>::type;
template <class A>
using Lanes = VectorOf<A, kLanes>;

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

// Halves are added until one lane is left: a loop over lanes in memory is several times slower.
template <int64_t N = kLanes, class V>
PSPFAST_INLINE auto sum(V v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    struct Halves {
      VectorOf<std::remove_cvref_t<decltype(v[0])>, N / 2> low, high;
    };
    const auto halves = bit_cast<Halves>(v);
    return sum<N / 2>(halves.low + halves.high);
  }
}

// The sums of four vectors.
template <class V>
PSPFAST_INLINE auto sum(V a, V b, V c, V d) {
  using A = std::remove_cvref_t<decltype(a[0])>;
#if PSPFAST_LEVEL == PSPFAST_AVX512
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
#endif
  return VectorOf<A, 4>{sum(a), sum(b), sum(c), sum(d)};
}

// Both halves of a vector.
template <class A>
PSPFAST_INLINE Lanes<A> join(VectorOf<A, kLanes / 2> low, VectorOf<A, kLanes / 2> high) {
#if PSPFAST_LEVEL == PSPFAST_AVX512
  // Compilers take the way through memory, where a load of two stores has to wait.
  if constexpr (sizeof(A) == 4) {
    const auto lower = _mm512_castsi256_si512(bit_cast<__m256i>(low));
    return bit_cast<Lanes<A>>(_mm512_inserti64x4(lower, bit_cast<__m256i>(high), 1));
  }
#endif
  const VectorOf<A, kLanes / 2> halves[] = {low, high};
  return bit_cast<Lanes<A>>(halves);
}

// from[index[i]] in lane i.
template <class A, class Index>
PSPFAST_INLINE Lanes<A> gather(const A* from, Index index) {
#if PSPFAST_LEVEL == PSPFAST_AVX512
  if constexpr (std::is_same_v<A, float>) {
    return bit_cast<Lanes<A>>(_mm512_i32gather_ps(bit_cast<__m512i>(index), from, sizeof(A)));
  }
#endif
  Lanes<A> v = {};
  for (int64_t i = 0; i < kLanes; ++i) v[i] = from[index[i]];
  return v;
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

// exp(x) for x <= 0; 0 below -87, where float has no normal numbers. The error is at most 2e-7 + 4e-8 |x| of it.
PSPFAST_INLINE Lanes<float> exp_of_negative(Lanes<float> x) {
  constexpr float kLog2E = 1.44269504f, kLeast = -87.f;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  constexpr float kRound = 12582912.f;
  const Lanes<float> shifted = x * kLog2E + kRound;
  const Lanes<float> n = shifted - kRound;
  const Lanes<float> f = x * kLog2E - n;
  // 2^f for |f| <= 1/2 by the polynomial of degree 5 with the smallest relative error of those with 1 at 0, 9e-8.
  Lanes<float> power = f * 1.32647273e-3f + 9.67151279e-3f;
  power = power * f + 5.55073374e-2f;
  power = power * f + 0.240222421f;
  power = power * f + 0.693146978f;
  power = power * f + 1.f;
#if PSPFAST_LEVEL == PSPFAST_AVX512
  const auto large_enough = _mm512_cmp_ps_mask(bit_cast<__m512>(x), _mm512_set1_ps(kLeast), _CMP_NLT_UQ);
  return bit_cast<Lanes<float>>(_mm512_maskz_scalef_ps(large_enough, bit_cast<__m512>(power), bit_cast<__m512>(n)));
#else
  const auto scale = bit_cast<Lanes<float>>((bit_cast<Lanes<int32_t>>(shifted) << 23) + (127 << 23));
  return x < kLeast ? Lanes<float>{} : power * scale;
#endif
}

PSPFAST_INLINE Lanes<double> exp_of_negative(Lanes<double> x) {
  for (int64_t i = 0; i < kLanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

// log(x) for normal numbers x > 0, to 2 units of the last place of the larger of it and 1.
PSPFAST_INLINE Lanes<float> log_of_positive(Lanes<float> x) {
  // x = 2^n (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2); its bits less those of sqrt(1/2) have n on top.
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const auto bits = bit_cast<Lanes<int32_t>>(x);
  const Lanes<int32_t> exponent = (bits - kSqrtHalf) >> 23;
  const Lanes<float> n = __builtin_convertvector(exponent, Lanes<float>);
  const Lanes<float> f = bit_cast<Lanes<float>>(bits - (exponent << 23)) - 1;
  // log(1 + f) = f - f^2 / 2 + f^3 p(f); p of degree 6 with the smallest relative error of the whole, 3e-8.
  Lanes<float> p = f * 8.70043888e-2f - 0.142674918f;
  p = p * f + 0.149147690f;
  p = p * f - 0.165775842f;
  p = p * f + 0.199630637f;
  p = p * f - 0.250013370f;
  p = p * f + 0.333339107f;
  const Lanes<float> square = f * f;
  // x - x is 0, and NaN where x is.
  return n * 0.693147181f + (f - square * 0.5f + square * f * p) + (x - x);
}

PSPFAST_INLINE Lanes<double> log_of_positive(Lanes<double> x) {
  for (int64_t i = 0; i < kLanes; ++i) x[i] = std::log(x[i]);
  return x;
}
