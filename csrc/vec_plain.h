// Vec for any machine, in the vector extension that GCC and Clang share: 4 floats, which are one
// SSE2 or NEON register. See vec.h for what each name means.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace mkd::MKD_ISA {

typedef float Floats __attribute__((vector_size(16)));
typedef double FourDoubles __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(16)));

constexpr bool kFmaRoundsOnce = false;
constexpr int kFractionBits = 0;  // no table: see near_runs.h

struct Vec {
  static constexpr int kLanes = 4;
  Floats v;
};

struct Mask {
  Ints v;  // all bits of a lane, or none
};

inline Vec all(float x) { return {Floats{x, x, x, x}}; }
inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec product_less(Vec a, Vec b, Vec c) {  // a product of floats is exact in double
  const auto wide = [](Vec x) { return __builtin_convertvector(x.v, FourDoubles); };
  return {__builtin_convertvector(wide(a) * wide(b) - wide(c), Floats)};
}
inline Mask above(Vec a, Vec b) { return {a.v > b.v}; }
inline Mask not_below(Vec a, Vec b) { return {~(a.v < b.v)}; }
inline Vec where(Mask m, Vec a, Vec b) {
  return {(Floats)(((Ints)a.v & m.v) | ((Ints)b.v & ~m.v))};
}
inline Vec where(Mask m, Vec a) { return {(Floats)((Ints)a.v & m.v)}; }
inline Vec max(Vec a, Vec b) { return where(above(a, b), a, b); }
inline Vec min(Vec a, Vec b) { return where(above(b, a), a, b); }
inline Vec nearest_integer(Vec a) {  // for |a| < 2^22
  const Floats shift = all(12582912.0f).v;
  return {(a.v + shift) - shift};
}
inline Vec times_power_of_two(Vec a, Vec n) {
  const Ints exponent = __builtin_convertvector(n.v, Ints) + 127;
  return {a.v * (Floats)(exponent << 23)};
}

inline void split_exponent(Vec a, Vec& exponent, Vec& mantissa) {
  const Ints e = ((Ints)a.v - kSqrtHalfBits) >> 23;
  exponent = {__builtin_convertvector(e, Floats)};
  mantissa = {(Floats)((Ints)a.v - (e << 23))};
}

inline float largest(Vec a) {
  float result = a.v[0];
  for (int i = 1; i < Vec::kLanes; ++i) result = a.v[i] > result ? a.v[i] : result;
  return result;
}
inline double sum(Vec a) {
  return (double(a.v[0]) + double(a.v[1])) + (double(a.v[2]) + double(a.v[3]));
}
// Sums of registers, in double.
struct Doubles {
  double v = 0.0;
  void add(Vec a) { v += mkd::MKD_ISA::sum(a); }
  double sum() const { return v; }
};

template <class Join>
inline Vec across(const Vec (&rows)[Vec::kLanes], Join join) {
  const auto lane = [&](int i) {
    return Vec{Floats{rows[0].v[i], rows[1].v[i], rows[2].v[i], rows[3].v[i]}};
  };
  return join(join(lane(0), lane(1)), join(lane(2), lane(3)));
}

inline Mask first_lanes(int count) { return {Ints{0, 1, 2, 3} < count}; }

inline float to_float(float x) { return x; }
inline float to_float(int8_t x) { return x; }
inline float to_float(BFloat16 x) { return torch::headeronly::detail::f32_from_bits(x.bits); }
inline float to_float(Float16 x) {
  return torch::headeronly::detail::fp16_ieee_to_fp32_value(x.bits);
}
inline void from_float(float* p, float x) { *p = x; }
inline void from_float(BFloat16* p, float x) {
  p->bits = torch::headeronly::detail::round_to_nearest_even(x);
}
inline void from_float(Float16* p, float x) {
  p->bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(x);
}

template <class T>
inline Vec load(const T* p, int count) {
  Vec result = all(0.0f);
  for (int i = 0; i < count; ++i) result.v[i] = to_float(p[i]);
  return result;
}
template <class T>
inline Vec load(const T* p) {
  return {Floats{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
}
template <class T>
inline void store(T* p, Vec a, int count) {
  for (int i = 0; i < count; ++i) from_float(p + i, a.v[i]);
}
template <class T>
inline void store(T* p, Vec a) {
  store(p, a, Vec::kLanes);
}
template <class T>
inline void stream(T* p, Vec a) {
  store(p, a);
}
inline void finish_streams() {}

// In memory the even one of two comes first, so that it is the lower half of 32 bits.
inline void load_even_odd(const BFloat16* p, Vec& even, Vec& odd) {
  Ints x;
  __builtin_memcpy(&x, p, sizeof(x));
  even = {(Floats)(x << 16)};
  odd = {(Floats)(x & kUpperHalf)};
}
inline Ints upper_half_rounded(Vec a) { return (Ints)a.v + kHalfOfLower; }
inline void store_even_odd(BFloat16* p, Vec even, Vec odd, bool) {
  const Ints low = (upper_half_rounded(even) >> 16) & 0xffff;
  const Ints both = low | (upper_half_rounded(odd) & kUpperHalf);
  __builtin_memcpy(p, &both, sizeof(both));
}

}  // namespace mkd::MKD_ISA
