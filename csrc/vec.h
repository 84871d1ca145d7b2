// A register of floats, and the two functions of it that a loss needs.
//
// A source that includes this file is compiled once for each instruction set, with MKD_ISA naming
// it, and everything lives in the namespace mkd::MKD_ISA: two copies of an inline function never
// meet in the linker, which would be free to keep the one that this machine cannot run.
//
// Each vec_*.h defines Vec (kLanes floats) and Mask, and
//   all(x)                     x in every lane
//   + - * /  fma(a, b, c)        a * b + c, rounded once where kFmaRoundsOnce
//   product_less(a, b, c)      a * b - c, where that is far smaller: rounded once everywhere
//   max min                    of each lane; where a lane of a is NaN, that of b
//   above, not_below           a > b; !(a < b), which is true for NaN
//   where(m, a[, b])           a where m, else b (or 0)
//   nearest_integer, times_power_of_two (n an integer in [-126, 127])
//   split_exponent             a = mantissa * 2^exponent, mantissa in [sqrt(1/2), sqrt(2))
//   kFractionBits, PowerTable, SeenBits   of near_runs.h, where kFmaRoundsOnce: 2^kFractionBits
//                              entries found by a float's low bits, and the bits that any had;
//                              and Doubles::add(a, factor)
//   largest, sum               over the lanes; the sum in double
//   across(rows, join)         kLanes registers to one: lane r is row r's lanes, joined
//   first_lanes(count)         a mask of the first count lanes
//   load, store [count]        of float, BFloat16 or Float16; the first count lanes only, others 0;
//                              int8_t is only loaded
//   stream                     an aligned store past the caches; finish_streams() after the last
//   load_even_odd, store_even_odd   of 2 kLanes BFloat16, those at even places and the others;
//                              what is stored is rounded to nearest, ties away from 0 (one
//                              instruction instead of three, for one float in 65,536), and must
//                              not be NaN
#pragma once

#include <cstdint>

#include "kd.h"

namespace mkd::MKD_ISA {
constexpr int32_t kSqrtHalfBits = 0x3f3504f3;  // of sqrt(1/2) as a float
constexpr int32_t kUpperHalf = -0x10000;       // of 32 bits
constexpr int32_t kHalfOfLower = 0x8000;       // what rounds the lower ones off
}  // namespace mkd::MKD_ISA

#if defined(MKD_ISA_AVX512)
#include "vec_avx512.h"
#elif defined(MKD_ISA_AVX2)
#include "vec_avx2.h"
#else
#include "vec_plain.h"
#endif

namespace mkd::MKD_ISA {

// (2^f - 1) / f for f in [-1/2, 1/2]; its relative error is below 5e-9.
template <int kCount>
[[gnu::always_inline]] inline void slopes_of_exp2(const Vec (&f)[kCount], Vec (&r)[kCount]) {
  constexpr float kFactors[] = {0.0013399930903688073f, 0.009618489071726799f, 0.05550328642129898f,
                                0.24022646248340607f, 0.6931471824645996f};
  for (int k = 0; k < kCount; ++k) r[k] = all(0.0001534581242594868f);
  for (const float factor : kFactors) {
    for (int k = 0; k < kCount; ++k) r[k] = fma(r[k], f[k], all(factor));
  }
}

inline Vec slope_of_exp2(Vec f) {
  Vec r[1];
  slopes_of_exp2({f}, r);
  return r[0];
}

// 2^(whole + rest) of a few registers, where `counts`, else 0.
//
// Step by step in all of them: each step of one waits for the step before it, and a processor does
// not look far enough ahead to find the next register's.
template <int kCount>
[[gnu::always_inline]] inline void powers(const Vec (&whole)[kCount], const Vec (&rest)[kCount],
                                          const Mask (&counts)[kCount], Vec (&x)[kCount]) {
  slopes_of_exp2(rest, x);
  for (int k = 0; k < kCount; ++k) x[k] = fma(x[k], rest[k], all(1.0f));
  for (int k = 0; k < kCount; ++k) x[k] = where(counts[k], times_power_of_two(x[k], whole[k]));
}

// 2^t of a few registers, for t <= 127, within 1 ulp. Results below 2^-126 are 0, so that no
// denormal number, which costs some machines a hundred cycles, gets into a sum; 2^-inf = 0, and NaN
// stays NaN. `counts` tells which are not such a 0.
template <int kCount>
[[gnu::always_inline]] inline void exp2(const Vec (&t)[kCount], Vec (&x)[kCount],
                                        Mask (&counts)[kCount]) {
  Vec n[kCount], f[kCount];
  for (int k = 0; k < kCount; ++k) n[k] = nearest_integer(t[k]);
  for (int k = 0; k < kCount; ++k) f[k] = t[k] - n[k];  // exact
  for (int k = 0; k < kCount; ++k) counts[k] = not_below(t[k], all(-126.0f));
  powers(n, f, counts, x);
}

inline Vec exp2(Vec t) {
  Vec x[1];
  Mask counts[1];
  exp2({t}, x, counts);
  return x[0];
}

// 2^t - 1 for t held within [-126, 127], as exact in relative terms as t nears 0.
inline Vec exp2_minus_1(Vec t) {
  t = min(all(127.0f), max(all(-126.0f), t));  // in this order NaN stays NaN
  const Vec n = nearest_integer(t);
  const Vec f = t - n, power = times_power_of_two(all(1.0f), n);
  return fma(power, slope_of_exp2(f) * f, power - all(1.0f));
}

// A number for all lanes in two parts, the second what rounding took off the first.
struct TwoFloats {
  float high = 0.0f, low = 0.0f;

  TwoFloats() = default;
  explicit TwoFloats(double x)
      : high(static_cast<float>(x)), low(static_cast<float>(x - static_cast<float>(x))) {}
};

// A logarithm to base 2 as a whole number and a rest of about [-1/2, 1/2]. An exponential
// multiplies the error of a logarithm by its value, so that of a large one in a float of its own
// is rough; here the rest alone is rounded, and whole numbers cancel exactly. Where `whole` is
// infinite or NaN, `rest` is any finite number.
struct Log {
  Vec whole, rest;
};
constexpr float kNoRest = -1e30f;  // what the NaN that is left of an infinite number becomes

// The nearest float.
inline Vec joined(Log x) { return x.whole + x.rest; }

inline Log operator-(Log x, Log y) { return {x.whole - y.whole, x.rest - y.rest}; }

// The same number with its rest in [-1/2, 1/2].
inline Log reduced(Log x) {
  const Vec n = nearest_integer(x.rest);
  return {x.whole + n, x.rest - n};
}

// a x, with a rest of [-1/2, 1/2] if x has one and |a| <= 1.
inline Log operator*(TwoFloats a, Log x) {
  const Vec high = all(a.high), whole = nearest_integer(fma(high, x.rest, high * x.whole));
  const Vec rest = fma(all(a.low), x.whole, product_less(high, x.whole, whole));
  return {whole, max(fma(high, x.rest, rest), all(kNoRest))};
}

template <int kCount>
[[gnu::always_inline]] inline void exp2(const Log (&t)[kCount], Vec (&x)[kCount],
                                        Mask (&counts)[kCount]) {
  Vec n[kCount], f[kCount];
  for (int k = 0; k < kCount; ++k) {
    n[k] = t[k].whole;
    f[k] = t[k].rest;
    counts[k] = not_below(n[k], all(-126.0f));
  }
  powers(n, f, counts, x);
}

inline Vec exp2(Log t) {
  Vec x[1];
  Mask counts[1];
  exp2({t}, x, counts);
  return x[0];
}

// tanh(x), within 3 ulp near 0 and 1 ulp where it nears 1; NaN stays NaN.
inline Vec tanh(Vec x) {
  const Vec zero = all(0.0f), one = all(1.0f), two = all(2.0f);
  const Mask is_negative = above(zero, x);
  const Vec size = where(is_negative, zero - x, x);
  const Vec e = exp2_minus_1(size * all(2.88539008177792681f));  // exp(2 size) - 1
  const Vec result = where(above(e, one), one - two / (e + two), e / (e + two));
  return where(is_negative, zero - result, result);
}

// log2(x) for normal x > 0, within 2 ulp, and exact in relative terms as x nears 1.
inline Vec log2(Vec x) {
  Vec exponent, mantissa;
  split_exponent(x, exponent, mantissa);
  const Vec f = mantissa - all(1.0f);
  Vec r = fma(all(0.12583701312541962f), f, all(-0.20726972818374634f));
  r = fma(r, f, all(0.21571560204029083f));
  r = fma(r, f, all(-0.23894482851028442f));
  r = fma(r, f, all(0.28791624307632446f));
  r = fma(r, f, all(-0.3607036769390106f));
  r = fma(r, f, all(0.48091062903404236f));
  r = fma(r, f, all(-0.7213473320007324f));
  r = fma(r, f, all(1.4426950216293335f));
  return fma(r, f, exponent);
}

}  // namespace mkd::MKD_ISA
