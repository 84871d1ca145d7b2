// What the sweeps know of a row: sums, the factors that follow, and from these a column's
// probabilities.
//
// t_s and t_t are log2 of the unnormalised probabilities, e_s = 2^t_s and e_t = 2^t_t, relative to
// the largest logit of the row; Z_s and Z_t are the sums of e_s and e_t. Only forward KL, whose
// gradient knows no logarithm, does without their low parts. "s" is the student,
// q = e_s / Z_s, and "t" the teacher, p = e_t / Z_t.
#pragma once

#include <cmath>

#include "vec.h"

namespace mkd::MKD_ISA {

constexpr double kLn2 = 0.693147180559945309;
constexpr double kLog2E = 1.44269504088896341;
constexpr float kNothing = -__builtin_inff();

// What the sweeps before the last one leave behind.
struct RowSums {
  float max_s = kNothing, max_t = kNothing;
  double z_s = 0.0, z_t = 0.0;
  double z_ce = 0.0;                        // sum of exp(z_s - max), without a temperature
  double cross_t = 0.0, cross_s = 0.0;      // sum of e_t (t_t - t_s), and of e_s (t_s - t_t)
  double low_s = 0.0;                       // what low parts contribute to cross_s
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
    low_s += others.low_s;
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
  TwoFloats log2_z_s, log2_z_t;
  float whole, tilt;                              // log2 Z_s - log2 Z_t, a whole number and a rest
  float weight;                                   // of the kd gradient
  float slope, centre_whole, centre, centre_low;  // of reverse_kl: see there
  TwoFloats pulls;                                // their sum, where the sum of q is 1

  // Fill in what it takes to make probabilities of t_s and t_t.
  void normalise(double z_s, double z_t) {
    const double log_s = ::log2(z_s), log_t = ::log2(z_t);
    inverse_z_s = static_cast<float>(1.0 / z_s);
    inverse_z_t = static_cast<float>(1.0 / z_t);
    log2_z_s = TwoFloats(log_s);
    log2_z_t = TwoFloats(log_t);
    whole = static_cast<float>(::rint(log_s - log_t));
    tilt = static_cast<float>((log_s - log_t) - ::rint(log_s - log_t));
  }

  // log2(p / q). Whole numbers are taken off exactly, so that no rounded logarithm of Z shifts all
  // columns.
  Vec log_ratio(Log t_s, Log t_t) const {
    return ((t_t.high - t_s.high) + all(whole)) + ((t_t.low - t_s.low) + all(tilt));
  }

  // One exponential gives the larger probability, a second one times it the smaller: p and q are
  // as close to each other as d says.
  Column column(Log t_s, Log t_t) const {
    const Vec zero = all(0.0f);
    Column c;
    c.d = log_ratio(t_s, t_t);
    c.p_leads = above(c.d, zero);
    c.ratio = exp2(min(c.d, zero - c.d));
    const Log larger{where(c.p_leads, t_t.high, t_s.high), where(c.p_leads, t_t.low, t_s.low)};
    const Vec most = exp2(larger) * where(c.p_leads, all(inverse_z_t), all(inverse_z_s));
    const Vec least = most * c.ratio;
    c.p = where(c.p_leads, most, least);
    c.q = where(c.p_leads, least, most);
    c.p = where(above(c.p, zero), c.p);
    c.q = where(above(c.q, zero), c.q);
    return c;
  }
};

}  // namespace mkd::MKD_ISA
