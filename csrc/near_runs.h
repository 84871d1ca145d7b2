// The first sweep of a long row where all exponents are near 0: less than 8 above those of a
// block's reference, and at most kNearFall below it. There is nothing to compare, mask or clamp;
// what leaves that range, as -inf, NaN and all too large logits do, is noticed after the block,
// which is then taken again as long_runs.h does.
//
// Each exponent t = z rate - c, where c is a multiple of 2^-F (F = kFractionBits), is a multiple of
// 2^-F and a rest. One fused multiply-add finds the multiple, as it rounds to the last bit of
//
//   m = 2 + (z rate - c + kNearFall) unit,       unit = 2^(F - 22)
//
// for numbers in [2, 4) have a last bit of 2^-22, and a second one finds the rest with a rounding
// of its own: r = z rate - (m - (2 + (kNearFall - c) unit)) / unit. The low F bits of m then number
// one of 2^F powers of two in a table, and those above are its exponent: 2^t = power 2^r, where |r|
// is at most 2^-(F + 1). m is within the range if it has no bit but those of 2 and its lowest
// 7 + F: each number that lies elsewhere has others, except 0, which stands for the smallest power,
// some 2^-120.
//
// 2^r takes a cubic where there are 8 powers. Where there are 32, a parabola will do, and takes two
// instructions less about its vertex: 2^r = k ((r + b)^2 + d), where r + b comes instead of r at no
// cost as long as b is a multiple of 2^-F, and the table holds k.
//
// AVX-512: 23 instructions for a register of either side, 9 of them on the pipes that multiply.
#pragma once

#include "long_runs.h"

namespace mkd::MKD_ISA {

#ifdef MKD_ISA_PLAIN  // where a multiply-add rounds twice, rests are rough: nothing is near

template <Label kLabel>
class NearRuns {
 public:
  NearRuns(const Exponent&, const Exponent&, const Exponent&) {}
  void refer_to(float, float) {}
};

#else

constexpr double kNearFall = 120.0;
constexpr int kNearBits = 7;
constexpr double kNearUnit = 1.0 / (1 << (22 - kFractionBits));

// b, k and d: with this b, those whose largest error is least, 1.3e-7.
constexpr bool kIsParabola = kFractionBits == 5;
constexpr double kVertex = kIsParabola ? 46.0 / 32.0 : 0.0;
constexpr double kBend = 0.24109941524697082, kLeast = 2.0812600249898408;

// Exponents of one side.
class NearExponent {
 public:
  NearExponent() = default;
  NearExponent(const Exponent& exponent, float reference)
      : rate(all(static_cast<float>(exponent.rate * kNearUnit))),
        magic(of(kNearFall - exponent.c_of(reference))),
        vertex(of(kNearFall - exponent.c_of(reference) + kVertex)) {}

  Vec multiple(Vec z) const { return fma(z, rate, magic); }
  Vec rest(Vec z, Vec multiple) const {  // and kVertex
    return product_less(z, rate, multiple - (kVertex == 0.0 ? magic : vertex));
  }

 private:
  Vec rate = all(0.0f), magic = rate, vertex = rate;

  static Vec of(double exponent) { return all(static_cast<float>(2.0 + exponent * kNearUnit)); }
};

// 2^t from its parts.
class NearPowers {
 public:
  NearPowers() : table(bits().of) {}

  Vec operator()(Vec multiple, Vec rest) const {
    const auto coefficient = [](double x) { return all(static_cast<float>(x)); };
    const Vec power = table(multiple);
    if constexpr (kIsParabola) {
      return power * fma(rest, rest, coefficient(kLeast * kNearUnit * kNearUnit));
    }
    // The Taylor series, the last but one coefficient with what makes the largest error of 2^r
    // least where the next term is left out: 2.5e-8.
    constexpr double kOne = kLn2 / kNearUnit, kMost = kNearUnit / (2 << kFractionBits);
    constexpr double kSquare = kOne * kOne / 2.0, kCube = kOne * kSquare / 3.0;
    constexpr double kFourth = kOne * kCube / 4.0;
    const Vec bend =
        fma(coefficient(kCube), rest, coefficient(kSquare + 0.828 * kFourth * kMost * kMost));
    return fma(power * rest, fma(bend, rest, coefficient(kOne)), power);
  }

 private:
  struct Bits {
    int32_t of[1 << kFractionBits];
  };

  PowerTable table;

  // Of k 2^(j 2^-F - kNearFall), less what j adds to the exponent.
  static Bits bits() {
    constexpr double kFactor = kIsParabola ? kBend / (kNearUnit * kNearUnit) : 1.0;
    Bits bits;
    for (int32_t j = 0; j < 1 << kFractionBits; ++j) {
      const float power =
          static_cast<float>(kFactor * ::exp2(double(j) / (1 << kFractionBits) - kNearFall));
      __builtin_memcpy(&bits.of[j], &power, sizeof(power));
      bits.of[j] -= j << (23 - kFractionBits);
    }
    return bits;
  }
};

// What the cross sum is made of: t_t - t_s = rate (z_t - ratio z_s - shift) + rest, where `shift`
// takes off what the sides' references differ by.
class NearDifference {
 public:
  NearDifference() = default;
  NearDifference(const Exponent& s, const Exponent& t, float reference_s, float reference_t)
      : rate(t.rate), rest(s.c_of(reference_s) - t.c_of(reference_t)) {
    is_plain = s.rate == t.rate && std::fabs(rest) <= kMostPlain;
    if (is_plain) return;
    const float shifted = static_cast<float>(-rest / rate);
    minus_ratio = all(-s.rate / t.rate);
    shift = all(shifted);
    rest += rate * shifted;
  }

  // Whether there is a ratio of 1, and a shift so small that it need not be taken off each column.
  bool is_plain = false;

  template <bool kIsPlain>
  [[gnu::always_inline]] Vec of(Vec s, Vec t) const {
    return kIsPlain ? t - s : fma(s, minus_ratio, t) - shift;
  }

  // From sums of x_t times this, and of x_t, to those of x_t (t_t - t_s).
  void add(Vec cross, Vec z_t, Doubles& to) const {
    to.add(cross, rate);
    to.add(z_t, rest);
  }

 private:
  static constexpr double kMostPlain = 4.0;  // times 2^-24, what is rounded of a cross sum

  double rate = 0.0, rest = 0.0;
  Vec minus_ratio = all(0.0f), shift = minus_ratio;
};

// What a block's exponents refer to, and all that follows from it.
struct NearReference {
  NearExponent s, t, own;
  NearDifference difference;
};

// Columns that are added up in float: twice those of a Run, for pairs are added first.
constexpr int kNearRun = 2 * kRun;

// As Run (long_runs.h).
template <Label kLabel, bool kIsPlain>
struct NearRun {
  const NearPowers powers;
  const NearReference from;
  const Exponentials kept;
  SeenBits seen;
  Vec z_s = all(0.0f), z_t = z_s, z_ce = z_s, cross = z_s;

  // Step by step for both registers of either side: the next step of one does not wait for its
  // last.
  [[gnu::always_inline]] void add(int i, const Pair& s, const Pair& t) {
    const Vec m_s[] = {from.s.multiple(s.a), from.s.multiple(s.b)};
    const Vec m_t[] = {from.t.multiple(t.a), from.t.multiple(t.b)};
    const Vec r_s[] = {from.s.rest(s.a, m_s[0]), from.s.rest(s.b, m_s[1])};
    const Vec r_t[] = {from.t.rest(t.a, m_t[0]), from.t.rest(t.b, m_t[1])};
    const Vec difference[] = {from.difference.of<kIsPlain>(s.a, t.a),
                              from.difference.of<kIsPlain>(s.b, t.b)};
    const Vec x_s[] = {powers(m_s[0], r_s[0]), powers(m_s[1], r_s[1])};
    const Vec x_t[] = {powers(m_t[0], r_t[0]), powers(m_t[1], r_t[1])};
    if constexpr (kLabel == Label::kOwn) add_own(i, s);
    for (int k = 0; k < 2; ++k) {
      seen.add(m_s[k], m_t[k]);
      store(kept.e_s + i + k * Vec::kLanes, x_s[k]);
      store(kept.e_t + i + k * Vec::kLanes, x_t[k]);
      if constexpr (kLabel == Label::kSquare) z_ce = fma(x_s[k], x_s[k], z_ce);
      cross = fma(x_t[k], difference[k], cross);
    }
    z_s = z_s + (x_s[0] + x_s[1]);
    z_t = z_t + (x_t[0] + x_t[1]);
  }

  void add_to(BlockSums<kLabel>& sums) const {
    sums.z_s.add(z_s);
    sums.z_t.add(z_t);
    if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) sums.z_ce.add(z_ce);
    from.difference.add(cross, z_t, sums.cross);
  }

 private:
  [[gnu::always_inline]] void add_own(int i, const Pair& s) {
    const Vec m[] = {from.own.multiple(s.a), from.own.multiple(s.b)};
    const Vec x[] = {powers(m[0], from.own.rest(s.a, m[0])),
                     powers(m[1], from.own.rest(s.b, m[1]))};
    seen.add(m[0], m[1]);
    store(kept.e_own + i, x[0]);
    store(kept.e_own + i + Vec::kLanes, x[1]);
    z_ce = z_ce + (x[0] + x[1]);
  }
};

template <Label kLabel>
class NearRuns {
 public:
  NearRuns(const Exponent& s, const Exponent& t, const Exponent& own) : s(s), t(t), own(own) {}

  // What comes refers to these logits.
  void refer_to(float reference_s, float reference_t) {
    from = {
        {s, reference_s}, {t, reference_t}, {own, reference_s}, {s, t, reference_s, reference_t}};
  }

  // Adds whole pairs to the sums; whether all of them are near, and the sums good. Before the
  // exponentials of the pair at i are kept, `beside(i)` is called.
  template <class S, class T, class Beside>
  bool add(const S* from_s, const T* from_t, int size, const Exponentials& kept,
           BlockSums<kLabel>& sums, Beside beside) const {
    return from.difference.is_plain ? add<true>(from_s, from_t, size, kept, sums, beside)
                                    : add<false>(from_s, from_t, size, kept, sums, beside);
  }

 private:
  const Exponent s, t, own;
  const NearPowers powers;
  NearReference from;

  // A function of its own, and `beside` its own: next to other loops the compiler has no registers
  // left for this one.
  template <bool kIsPlain, class S, class T, class Beside>
  [[gnu::noinline]] bool add(const S* from_s, const T* from_t, int size, const Exponentials& kept,
                             BlockSums<kLabel>& sums, Beside beside) const {
    constexpr OrderOf<S, T> order;
    SeenBits seen;
    for (int begin = 0; begin < size; begin += kNearRun) {
      NearRun<kLabel, kIsPlain> run{powers, from, kept, seen};
      const int end = std::min(size, begin + kNearRun);
      for (int i = begin; i + kPair <= end; i += kPair) {
        fetch_pair(from_s + i);
        fetch_pair(from_t + i);
        beside(i);
        run.add(i, load_pair(order, from_s + i), load_pair(order, from_t + i));
      }
      run.add_to(sums);
      seen = run.seen;
    }
    constexpr int32_t kAllowed = 0x40000000 | ((1 << (kNearBits + kFractionBits)) - 1);
    return (seen.all() & ~kAllowed) == 0;
  }
};

#endif

}  // namespace mkd::MKD_ISA
