// Vectors longer than a register, in halves: compilers take such vectors of their own apart lane by lane. Included once
// per instruction set, by vector.inl.

template <class V>
struct Pair {
  V low, high;
};
template <class V>
Pair(V, V) -> Pair<V>;

// VectorOf<A, N>: the compiler's vector where a register can hold it.
template <class A, int64_t N, bool kFits>
struct VectorOfType {
  typedef A type __attribute__((vector_size(N * sizeof(A))));
};
template <class A, int64_t N>
using VectorOf = typename VectorOfType<A, N, N * sizeof(A) <= kRegisterBytes>::type;
template <class A, int64_t N>
struct VectorOfType<A, N, false> {
  using type = Pair<VectorOf<A, N / 2>>;
};

template <class V>
struct VectorTraits {
  using Element = std::remove_cvref_t<decltype(V{}[0])>;
};
template <class V>
struct VectorTraits<Pair<V>> {
  using Element = typename VectorTraits<V>::Element;
};
template <class V>
using ElementOf = typename VectorTraits<V>::Element;
template <class V>
constexpr bool kIsPair = false;
template <class V>
constexpr bool kIsPair<Pair<V>> = true;
template <class V>
constexpr int64_t kLanesOf = sizeof(V) / sizeof(ElementOf<V>);

// Scalars are converted as the compiler's vectors convert them.
#define PSPFAST_OPERATOR(op)                                   \
  template <class V>                                           \
  PSPFAST_INLINE auto operator op(Pair<V> a, Pair<V> b) {      \
    return Pair{a.low op b.low, a.high op b.high};             \
  }                                                            \
  template <class V>                                           \
  PSPFAST_INLINE auto operator op(Pair<V> a, ElementOf<V> b) { \
    return Pair{a.low op b, a.high op b};                      \
  }                                                            \
  template <class V>                                           \
  PSPFAST_INLINE auto operator op(ElementOf<V> a, Pair<V> b) { \
    return Pair{a op b.low, a op b.high};                      \
  }
#define PSPFAST_ARITHMETIC(op, assign)                       \
  PSPFAST_OPERATOR(op)                                       \
  template <class V, class B>                                \
  PSPFAST_INLINE Pair<V>& operator assign(Pair<V>& a, B b) { \
    return a = a op b;                                       \
  }

PSPFAST_ARITHMETIC(+, +=)
PSPFAST_ARITHMETIC(-, -=)
PSPFAST_ARITHMETIC(*, *=)
PSPFAST_OPERATOR(/)
PSPFAST_OPERATOR(&)
PSPFAST_OPERATOR(|)
PSPFAST_OPERATOR(<<)
PSPFAST_OPERATOR(>>)
PSPFAST_OPERATOR(==)
PSPFAST_OPERATOR(!=)
PSPFAST_OPERATOR(<)
PSPFAST_OPERATOR(<=)
PSPFAST_OPERATOR(>)
PSPFAST_OPERATOR(>=)

#undef PSPFAST_ARITHMETIC
#undef PSPFAST_OPERATOR

template <class V>
PSPFAST_INLINE auto operator~(Pair<V> v) {
  return Pair{~v.low, ~v.high};
}

// mask ? a : b in every lane.
template <class M, class V>
PSPFAST_INLINE V select(M mask, V a, V b) {
  if constexpr (kIsPair<V>) {
    return {select(mask.low, a.low, b.low), select(mask.high, a.high, b.high)};
  } else {
    return mask ? a : b;
  }
}

template <class To, class From>
PSPFAST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  if constexpr (kIsPair<To> && kIsPair<From>) {
    return {bit_cast<decltype(To::low)>(from.low), bit_cast<decltype(To::high)>(from.high)};
  } else {
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
  }
}

template <class V>
PSPFAST_INLINE auto halves(V v) {
  if constexpr (kIsPair<V>) {
    return v;
  } else {
    return bit_cast<Pair<VectorOf<ElementOf<V>, kLanesOf<V> / 2>>>(v);
  }
}

// The vector of both halves.
template <class V>
PSPFAST_INLINE auto join(V low, V high) {
  using Joined = VectorOf<ElementOf<V>, 2 * kLanesOf<V>>;
#if PSPFAST_ISA == PSPFAST_AVX512
  // Compilers take the way through memory, where a load of two stores has to wait.
  if constexpr (sizeof(V) == sizeof(__m256i)) {
    const auto lower = _mm512_castsi256_si512(bit_cast<__m256i>(low));
    return bit_cast<Joined>(_mm512_inserti64x4(lower, bit_cast<__m256i>(high), 1));
  }
#endif
  return bit_cast<Joined>(Pair{low, high});
}

// Every lane as an A.
template <class A, class V>
PSPFAST_INLINE auto convert(V v) {
  using To = VectorOf<A, kLanesOf<V>>;
  if constexpr (kIsPair<V> || kIsPair<To>) {
    const auto of = halves(v);
    return join(convert<A>(of.low), convert<A>(of.high));
  } else {
    return __builtin_convertvector(v, To);
  }
}
