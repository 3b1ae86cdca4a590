// exp and log of vectors, for the ops of logits. Included once per instruction set, behind vector.inl.

// f of every lane.
template <class F>
PSPFAST_INLINE Lanes<double> map_lanes(Lanes<double> v, const F& f) {
  auto lanes = array_of(v);
  for (double& lane : lanes) lane = f(lane);
  return load(lanes.data());
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
#if PSPFAST_ISA == PSPFAST_AVX512
  const auto large_enough = _mm512_cmp_ps_mask(bit_cast<__m512>(x), _mm512_set1_ps(kLeast), _CMP_NLT_UQ);
  return bit_cast<Lanes<float>>(_mm512_maskz_scalef_ps(large_enough, bit_cast<__m512>(power), bit_cast<__m512>(n)));
#else
  const auto scale = bit_cast<Lanes<float>>((bit_cast<Lanes<int32_t>>(shifted) << 23) + (127 << 23));
  return select(x < kLeast, Lanes<float>{}, power * scale);
#endif
}

PSPFAST_INLINE Lanes<double> exp_of_negative(Lanes<double> x) {
  return map_lanes(x, [](double lane) { return std::exp(lane); });
}

// log(x) for normal numbers x > 0, to 2 units of the last place of the larger of it and 1.
PSPFAST_INLINE Lanes<float> log_of_positive(Lanes<float> x) {
  // x = 2^n (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2); its bits less those of sqrt(1/2) have n on top.
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const auto bits = bit_cast<Lanes<int32_t>>(x);
  const Lanes<int32_t> exponent = (bits - kSqrtHalf) >> 23;
  const Lanes<float> n = convert<float>(exponent);
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
  return map_lanes(x, [](double lane) { return std::log(lane); });
}
