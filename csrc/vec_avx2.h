// Vec for AVX2 with FMA and F16C: 8 floats. See vec.h for what each name means.
#pragma once

#include <immintrin.h>

namespace mkd::MKD_ISA {

constexpr bool kFmaRoundsOnce = true;

struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
};

struct Mask {
  __m256 v;
};

inline Vec all(float x) { return {_mm256_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec product_less(Vec a, Vec b, Vec c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Mask above(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask not_below(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_NLT_UQ)}; }
inline Vec where(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }
inline Vec where(Mask m, Vec a) { return {_mm256_and_ps(m.v, a.v)}; }
inline Vec nearest_integer(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec times_power_of_two(Vec a, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}

inline void split_exponent(Vec a, Vec& exponent, Vec& mantissa) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(kSqrtHalfBits)), 23);
  exponent = {_mm256_cvtepi32_ps(e)};
  mantissa = {_mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23)))};
}

// See near_runs.h.
constexpr int kFractionBits = 3;
class PowerTable {
 public:
  explicit PowerTable(const int32_t (&bits)[1 << kFractionBits])
      : table(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits))) {}
  Vec operator()(Vec m) const {
    const __m256i i = _mm256_castps_si256(m.v);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_permutevar8x32_epi32(table, i),
                                                 _mm256_slli_epi32(i, 23 - kFractionBits)))};
  }

 private:
  __m256i table;
};
struct SeenBits {
  __m256 v = _mm256_setzero_ps();
  void add(Vec a, Vec b) { v = _mm256_or_ps(v, _mm256_or_ps(a.v, b.v)); }
  int32_t all() const {
    int32_t lanes[Vec::kLanes], result = 0;
    _mm256_storeu_ps(reinterpret_cast<float*>(lanes), v);
    for (int32_t lane : lanes) result |= lane;
    return result;
  }
};

inline float largest(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
// Sums of registers, in double.
struct Doubles {
  __m256d v = _mm256_setzero_pd();
  void add(Vec a) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a.v));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1));
    v = _mm256_add_pd(v, _mm256_add_pd(low, high));
  }
  void add(Vec a, double factor) {
    Doubles of_a;
    of_a.add(a);
    v = _mm256_fmadd_pd(of_a.v, _mm256_set1_pd(factor), v);
  }
  double sum() const {
    const __m128d y = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(y, _mm_unpackhi_pd(y, y)));
  }
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
    return join(Vec{_mm256_unpacklo_ps(a.v, b.v)}, Vec{_mm256_unpackhi_ps(a.v, b.v)});
  };
  const auto fours = [&](const Vec* r) {  // 128 bits hold what they had of four rows, joined
    const __m256d a = _mm256_castps_pd(halves(r[0], r[1]).v);
    const __m256d b = _mm256_castps_pd(halves(r[2], r[3]).v);
    return join(Vec{_mm256_castpd_ps(_mm256_unpacklo_pd(a, b))},
                Vec{_mm256_castpd_ps(_mm256_unpackhi_pd(a, b))});
  };
  const Vec a = fours(rows), b = fours(rows + 4);
  return join(Vec{_mm256_permute2f128_ps(a.v, b.v, 0x20)},
              Vec{_mm256_permute2f128_ps(a.v, b.v, 0x31)});
}

inline __m256i first(int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}
inline Mask first_lanes(int count) { return {_mm256_castsi256_ps(first(count))}; }

inline Vec from_bits(const BFloat16*, __m128i x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
}
inline Vec from_bits(const Float16*, __m128i x) { return {_mm256_cvtph_ps(x)}; }

inline __m128i to_bits(const BFloat16*, Vec a) {  // round to nearest even; NaN stays a quiet NaN
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
}
inline __m128i to_bits(const Float16*, Vec a) {
  return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const float* p, int count) { return {_mm256_maskload_ps(p, first(count))}; }
inline Vec load(const int8_t* p) {
  const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x))};
}
template <class T>
inline Vec load(const T* p) {
  return from_bits(p, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class T>
inline Vec load(const T* p, int count) {
  T padded[Vec::kLanes] = {};
  __builtin_memcpy(padded, p, count * sizeof(T));
  return load(padded);
}

inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store(float* p, Vec a, int count) { _mm256_maskstore_ps(p, first(count), a.v); }
inline void stream(float* p, Vec a) { _mm256_stream_ps(p, a.v); }
template <class T>
inline void store(T* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bits(p, a));
}
template <class T>
inline void store(T* p, Vec a, int count) {
  T padded[Vec::kLanes];
  store(padded, a);
  __builtin_memcpy(p, padded, count * sizeof(T));
}
template <class T>
inline void stream(T* p, Vec a) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bits(p, a));
}
inline void finish_streams() { _mm_sfence(); }

inline void load_even_odd(const BFloat16* p, Vec& even, Vec& odd) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(kUpperHalf)))};
}
inline __m256i upper_half_rounded(Vec a) {
  return _mm256_add_epi32(_mm256_castps_si256(a.v), _mm256_set1_epi32(kHalfOfLower));
}
inline void store_even_odd(BFloat16* p, Vec even, Vec odd, bool past_caches) {
  const __m256i low = _mm256_srli_epi32(upper_half_rounded(even), 16);
  const __m256i both = _mm256_blend_epi16(low, upper_half_rounded(odd), 0xaa);
  if (past_caches) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), both);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), both);
  }
}

}  // namespace mkd::MKD_ISA
