// What the sweeps know of a row: sums, the factors that follow, and from these a column's
// probabilities.
//
// t_s and t_t are log2 of the unnormalised probabilities, e_s = 2^t_s and e_t = 2^t_t; Z_s and Z_t
// are the sums of e_s and e_t. "s" is the student, q = e_s / Z_s, and "t" the teacher,
// p = e_t / Z_t.
#pragma once

#include <cmath>

#include "vec.h"

namespace mkd::MKD_ISA {

constexpr double kLn2 = 0.693147180559945309;
constexpr double kLog2E = 1.44269504088896341;
constexpr float kNothing = -__builtin_inff();

// A logarithm for all lanes, as a Log has it.
struct WholeAndRest {
  float whole, rest;

  WholeAndRest() = default;
  explicit WholeAndRest(double x)
      : whole(static_cast<float>(::rint(x))), rest(static_cast<float>(x - ::rint(x))) {}

  double sum() const { return double(whole) + rest; }
};

inline Log operator+(Log x, WholeAndRest y) {
  return {x.whole + all(y.whole), x.rest + all(y.rest)};
}
inline Log operator-(Log x, WholeAndRest y) {
  return {x.whole - all(y.whole), x.rest - all(y.rest)};
}

// From a side's logits to its exponents, relative to those of its largest logit so far, whose own
// is exactly 0. kIsExact: no difference of logits is rounded. They are multiplied first, and whole
// numbers and rests subtracted apart; what is masked with the least float, and would then leave
// float, counts only where there is nothing else.
template <bool kIsExact>
class Exponents {
 public:
  Exponents(double rate, float most) : rate(rate) {
    if (most == kNothing) return;
    if (!kIsExact || most < kLeast) offset = all(most);
    if (kIsExact) reference = multiplied(all(most));
  }

  Log operator()(Vec z) const {
    return kIsExact ? reduced(multiplied(z) - reference) : multiplied(z);
  }

 private:
  static constexpr float kLeast = -0x1p100f;

  TwoFloats rate;
  Vec offset = all(0.0f);
  Log reference{all(0.0f), all(0.0f)};

  Log multiplied(Vec z) const {
    const Vec x = z - offset, high = all(rate.high), n = nearest_integer(x * high);
    const Vec rest = fma(all(rate.low), x, product_less(high, x, n));
    return {n, max(rest, all(kNoRest))};
  }
};

// What the sweeps before the last one leave behind.
struct RowSums {
  float max_s = kNothing, max_t = kNothing;
  double z_s = 0.0, z_t = 0.0;
  double z_ce = 0.0;                        // sum of exp(z_s - max), without a temperature
  double cross_t = 0.0, cross_s = 0.0;      // sum of e_t (t_t - t_s), and of e_s (t_s - t_t)
  double value = 0.0, pull = 0.0, q = 0.0;  // of a value sweep: D, and the sums of q dD/dq and q
  double log2_ratio() const { return ::log2(z_t / z_s); }
  // 0, but NaN where a sum is, or where a side has no logit above -inf.
  double broken() const { return 0.0 / z_s + 0.0 / z_t; }

  // Those of other columns, which refer to the same logits.
  void add(const RowSums& others) {
    z_s += others.z_s;
    z_t += others.z_t;
    z_ce += others.z_ce;
    cross_t += others.cross_t;
    cross_s += others.cross_s;
    value += others.value;
    pull += others.pull;
    q += others.q;
  }
};

// A register of columns, normalised. A probability that is 0 has a logarithm of -inf.
struct Column {
  Vec p, q;      // 0 where they are not positive
  Vec d;         // log2(p / q), with no error that the columns of a row share; maybe NaN
  Mask p_leads;  // p > q
  Vec ratio;     // of the smaller of the two to the larger
};

// The factors of one row, as the sweeps multiply by them.
struct RowFactors {
  float inverse_z_s, inverse_z_t;
  WholeAndRest log2_z_s, log2_z_t;
  WholeAndRest log2_ratio;  // log2 Z_s - log2 Z_t
  float weight;             // of the kd gradient
  TwoFloats centre;         // of reverse_kl: see there
  TwoFloats pulls;          // their sum, where the sum of q is 1

  // Fill in what it takes to make probabilities of t_s and t_t.
  void normalise(double z_s, double z_t) {
    const double log_s = ::log2(z_s), log_t = ::log2(z_t);
    inverse_z_s = static_cast<float>(1.0 / z_s);
    inverse_z_t = static_cast<float>(1.0 / z_t);
    log2_z_s = WholeAndRest(log_s);
    log2_z_t = WholeAndRest(log_t);
    log2_ratio = WholeAndRest(log_s - log_t);
  }

  // log2(p / q), infinite where one of them is 0.
  Log log_ratio(Log t_s, Log t_t) const { return (t_t - t_s) + log2_ratio; }

  // One exponential gives the larger probability, a second one times it the smaller: p and q are
  // as close to each other as d says.
  Column column(Log t_s, Log t_t) const {
    const Vec zero = all(0.0f);
    Column c;
    const Log ratio = reduced(log_ratio(t_s, t_t));
    c.d = ratio.whole + ratio.rest;
    c.p_leads = above(c.d, zero);
    const auto of_leader = [&](Vec of_p, Vec of_q) { return where(c.p_leads, of_p, of_q); };
    c.ratio = exp2(
        Log{of_leader(zero - ratio.whole, ratio.whole), of_leader(zero - ratio.rest, ratio.rest)});
    const Log larger{of_leader(t_t.whole, t_s.whole), of_leader(t_t.rest, t_s.rest)};
    const Vec most = exp2(larger) * of_leader(all(inverse_z_t), all(inverse_z_s));
    const Vec least = most * c.ratio;
    c.p = where(c.p_leads, most, least);
    c.q = where(c.p_leads, least, most);
    c.p = where(above(c.p, zero), c.p);
    c.q = where(above(c.q, zero), c.q);
    return c;
  }
};

}  // namespace mkd::MKD_ISA
