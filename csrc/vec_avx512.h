// Vec for AVX-512 (F, BW, DQ, VL): 16 floats, tails by mask. See vec.h for what each name means.
#pragma once

#include <immintrin.h>

namespace mkd::MKD_ISA {

constexpr bool kFmaRoundsOnce = true;

struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
};

struct Mask {
  __mmask16 v;
};

inline Vec all(float x) { return {_mm512_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec product_less(Vec a, Vec b, Vec c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Mask above(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask not_below(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ)}; }
inline Vec where(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
inline Vec where(Mask m, Vec a) { return {_mm512_maskz_mov_ps(m.v, a.v)}; }
inline Vec nearest_integer(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec times_power_of_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

inline void split_exponent(Vec a, Vec& exponent, Vec& mantissa) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i e = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(kSqrtHalfBits)), 23);
  exponent = {_mm512_cvtepi32_ps(e)};
  mantissa = {_mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(e, 23)))};
}

// See near_runs.h.
constexpr int kFractionBits = 5;
class PowerTable {
 public:
  explicit PowerTable(const int32_t (&bits)[1 << kFractionBits])
      : low(_mm512_loadu_si512(bits)), high(_mm512_loadu_si512(bits + Vec::kLanes)) {}
  Vec operator()(Vec m) const {
    const __m512i i = _mm512_castps_si512(m.v);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_permutex2var_epi32(low, i, high),
                                                 _mm512_slli_epi32(i, 23 - kFractionBits)))};
  }

 private:
  __m512i low, high;
};
struct SeenBits {
  __m512i v = _mm512_setzero_si512();
  void add(Vec a, Vec b) {
    v = _mm512_ternarylogic_epi32(v, _mm512_castps_si512(a.v), _mm512_castps_si512(b.v), 0xfe);
  }
  int32_t all() const { return _mm512_reduce_or_epi32(v); }
};

inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
// Sums of registers, in double.
struct Doubles {
  __m512d v = _mm512_setzero_pd();
  void add(Vec a) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a.v));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1));
    v = _mm512_add_pd(v, _mm512_add_pd(low, high));
  }
  void add(Vec a, double factor) {
    Doubles of_a;
    of_a.add(a);
    v = _mm512_fmadd_pd(of_a.v, _mm512_set1_pd(factor), v);
  }
  double sum() const { return _mm512_reduce_add_pd(v); }
};
inline double sum(Vec a) {
  Doubles total;
  total.add(a);
  return total.sum();
}

// join over the lanes of each row, by transposing as far as it takes.
template <class Join>
inline Vec across(const Vec (&rows)[Vec::kLanes], Join join) {
  const auto halves = [&](Vec a, Vec b) {  // of each 128 bits: a02 b02 a13 b13
    return join(Vec{_mm512_unpacklo_ps(a.v, b.v)}, Vec{_mm512_unpackhi_ps(a.v, b.v)});
  };
  const auto fours = [&](const Vec* r) {  // 128 bits hold what they had of four rows, joined
    const __m512d a = _mm512_castps_pd(halves(r[0], r[1]).v);
    const __m512d b = _mm512_castps_pd(halves(r[2], r[3]).v);
    return join(Vec{_mm512_castpd_ps(_mm512_unpacklo_pd(a, b))},
                Vec{_mm512_castpd_ps(_mm512_unpackhi_pd(a, b))});
  };
  const auto even_and_odd = [&](Vec a, Vec b) {
    return join(Vec{_mm512_shuffle_f32x4(a.v, b.v, 0x88)},
                Vec{_mm512_shuffle_f32x4(a.v, b.v, 0xdd)});
  };
  return even_and_odd(even_and_odd(fours(rows), fours(rows + 4)),
                      even_and_odd(fours(rows + 8), fours(rows + 12)));
}

inline __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline Mask first_lanes(int count) { return {first(count)}; }

inline Vec from_bits(const BFloat16*, __m256i x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
inline Vec from_bits(const Float16*, __m256i x) { return {_mm512_cvtph_ps(x)}; }

inline __m256i to_bits(const BFloat16*, Vec a) {  // round to nearest even; NaN stays a quiet NaN
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc0)));
}
inline __m256i to_bits(const Float16*, Vec a) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const float* p, int count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
inline Vec from_bytes(__m128i x) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))}; }
inline Vec load(const int8_t* p) {
  return from_bytes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const int8_t* p, int count) {
  return from_bytes(_mm_maskz_loadu_epi8(first(count), p));
}
template <class T>
inline Vec load(const T* p) {
  return from_bits(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <class T>
inline Vec load(const T* p, int count) {
  return from_bits(p, _mm256_maskz_loadu_epi16(first(count), p));
}

inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store(float* p, Vec a, int count) { _mm512_mask_storeu_ps(p, first(count), a.v); }
inline void stream(float* p, Vec a) { _mm512_stream_ps(p, a.v); }
template <class T>
inline void store(T* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bits(p, a));
}
template <class T>
inline void store(T* p, Vec a, int count) {
  _mm256_mask_storeu_epi16(p, first(count), to_bits(p, a));
}
template <class T>
inline void stream(T* p, Vec a) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bits(p, a));
}
inline void finish_streams() { _mm_sfence(); }

inline void load_even_odd(const BFloat16* p, Vec& even, Vec& odd) {
  const __m512i x = _mm512_loadu_si512(p);
  even = {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
  odd = {_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(kUpperHalf)))};
}
inline __m512i upper_half_rounded(Vec a) {
  return _mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_set1_epi32(kHalfOfLower));
}
inline void store_even_odd(BFloat16* p, Vec even, Vec odd, bool past_caches) {
  const __m512i low = _mm512_srli_epi32(upper_half_rounded(even), 16);
  const __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, low, upper_half_rounded(odd));
  if (past_caches) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), both);
  } else {
    _mm512_storeu_si512(p, both);
  }
}

}  // namespace mkd::MKD_ISA
