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
// one of 2^F powers of two in a table, and those above are its exponent: with these
//
//   2^t = power + power r slope(r),              slope(r) = (2^r - 1) / r
//
// where |r| is at most 2^-(F + 1), so that the slope takes two or three terms. m is within the
// range if it has no bit but those of 2 and its lowest 7 + F: each number that lies elsewhere has
// others, except 0, which stands for the smallest power, some 2^-120.
//
// AVX-512: 27 instructions for a register of either side, 11 of them on the pipes that multiply.
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

// Exponents of one side.
class NearExponent {
 public:
  NearExponent() = default;
  NearExponent(const Exponent& exponent, float reference)
      : rate(all(static_cast<float>(exponent.rate * kNearUnit))),
        magic(all(static_cast<float>(2.0 + (kNearFall - exponent.c_of(reference)) * kNearUnit))) {}

  Vec multiple(Vec z) const { return fma(z, rate, magic); }
  Vec rest(Vec z, Vec multiple) const { return product_less(z, rate, multiple - magic); }

 private:
  Vec rate = all(0.0f), magic = rate;
};

// 2^t from its parts.
class NearPowers {
 public:
  NearPowers() : table(bits().of) {}

  Vec operator()(Vec multiple, Vec rest) const {
    const Vec power = table(multiple);
    return fma(power * rest, slope(rest), power);
  }

 private:
  struct Bits {
    int32_t of[1 << kFractionBits];
  };

  PowerTable table;

  // Of 2^(j 2^-F - kNearFall), less what j adds to the exponent.
  static Bits bits() {
    constexpr int32_t kRoots[] = {
        // 2^(j / 32)
        0x3f800000, 0x3f82cd87, 0x3f85aac3, 0x3f88980f, 0x3f8b95c2, 0x3f8ea43a, 0x3f91c3d3,
        0x3f94f4f0, 0x3f9837f0, 0x3f9b8d3a, 0x3f9ef532, 0x3fa27043, 0x3fa5fed7, 0x3fa9a15b,
        0x3fad583f, 0x3fb123f6, 0x3fb504f3, 0x3fb8fbaf, 0x3fbd08a4, 0x3fc12c4d, 0x3fc5672a,
        0x3fc9b9be, 0x3fce248c, 0x3fd2a81e, 0x3fd744fd, 0x3fdbfbb8, 0x3fe0ccdf, 0x3fe5b907,
        0x3feac0c7, 0x3fefe4ba, 0x3ff5257d, 0x3ffa83b3};
    Bits bits;
    for (int32_t j = 0; j < 1 << kFractionBits; ++j) {
      bits.of[j] = kRoots[j << (5 - kFractionBits)] - (static_cast<int32_t>(kNearFall) << 23) -
                   (j << (23 - kFractionBits));
    }
    return bits;
  }

  // Both of the Taylor series, the last but one coefficient with what makes the largest error of
  // 2^t least where the next term is left out: 5.3e-8 of two terms, 2.5e-8 of three.
  static Vec slope(Vec rest) {
    constexpr double kOne = kLn2 / kNearUnit, kMost = kNearUnit / (2 << kFractionBits);
    const auto coefficient = [](double x) { return all(static_cast<float>(x)); };
    constexpr double kSquare = kOne * kOne / 2.0, kCube = kOne * kSquare / 3.0;
    if constexpr (kFractionBits == 5) {
      return fma(coefficient(kSquare), rest, coefficient(kOne + 0.75 * kCube * kMost * kMost));
    }
    constexpr double kFourth = kOne * kCube / 4.0;
    const Vec r =
        fma(coefficient(kCube), rest, coefficient(kSquare + 0.828 * kFourth * kMost * kMost));
    return fma(r, rest, coefficient(kOne));
  }
};

// As Run (long_runs.h).
template <Label kLabel>
struct NearRun {
  const NearPowers powers;
  const NearExponent exponent_s, exponent_t, exponent_own;
  const Exponentials kept;
  SeenBits seen;
  Vec z_s = all(0.0f), z_t = z_s, z_ce = z_s, cross = z_s;

  [[gnu::always_inline]] void add(int i, Vec s, Vec t) {
    const Vec m_s = exponent_s.multiple(s), m_t = exponent_t.multiple(t);
    const Vec r_s = exponent_s.rest(s, m_s), r_t = exponent_t.rest(t, m_t);
    const Vec x_s = powers(m_s, r_s), x_t = powers(m_t, r_t);
    seen.add(m_s, m_t);
    if constexpr (kLabel == Label::kOwn) {
      const Vec m = exponent_own.multiple(s), x = powers(m, exponent_own.rest(s, m));
      seen.add(m, m);
      store(kept.e_own + i, x);
      z_ce = z_ce + x;
    }
    if constexpr (kLabel == Label::kSquare) z_ce = fma(x_s, x_s, z_ce);
    store(kept.e_s + i, x_s);
    store(kept.e_t + i, x_t);
    z_s = z_s + x_s;
    z_t = z_t + x_t;
    cross = fma(x_t, (m_t - m_s) + (r_t - r_s), cross);
  }

  [[gnu::always_inline]] void add(int i, const Pair& s, const Pair& t) {
    add(i, s.a, t.a);
    add(i + Vec::kLanes, s.b, t.b);
  }

  void add_to(BlockSums<kLabel>& sums) const {
    sums.z_s.add(z_s);
    sums.z_t.add(z_t);
    if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) sums.z_ce.add(z_ce);
    sums.cross.add(cross * all(static_cast<float>(1.0 / kNearUnit)));
  }
};

template <Label kLabel>
class NearRuns {
 public:
  NearRuns(const Exponent& s, const Exponent& t, const Exponent& own) : s(s), t(t), own(own) {}

  // What comes refers to these logits.
  void refer_to(float reference_s, float reference_t) {
    near_s = NearExponent(s, reference_s);
    near_t = NearExponent(t, reference_t);
    near_own = NearExponent(own, reference_s);
  }

  // Adds whole pairs to the sums; whether all of them are near, and the sums good. Before the
  // exponentials of the pair at i are kept, `beside(i)` is called. A function of its own, and
  // `beside` its own: next to other loops the compiler has no registers left for this one.
  template <class S, class T, class Beside>
  [[gnu::noinline]] bool add(const S* from_s, const T* from_t, int size, const Exponentials& kept,
                             BlockSums<kLabel>& sums, Beside beside) const {
    constexpr OrderOf<S, T> order;
    SeenBits seen;
    for (int begin = 0; begin < size; begin += kRun) {
      NearRun<kLabel> run{powers, near_s, near_t, near_own, kept, seen};
      const int end = std::min(size, begin + kRun);
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

 private:
  const Exponent s, t, own;
  const NearPowers powers;
  NearExponent near_s, near_t, near_own;
};

#endif

}  // namespace mkd::MKD_ISA
