// The divergences, each as what a row's sweeps must collect and what they must write.
//
// t_s and t_t are log2 of the unnormalised probabilities, e_s = 2^t_s and e_t = 2^t_t, relative to
// the largest logit of the row; Z_s and Z_t are the sums of e_s and e_t. In this file "s" is the
// student, q = e_s / Z_s, and "t" the teacher, p = e_t / Z_t.
#pragma once

#include <cmath>

#include "vec.h"

namespace mkd::MKD_ISA {

constexpr double kLn2 = 0.693147180559945309;

// What the first sweep leaves behind.
struct RowSums {
  float max_s = -__builtin_inff(), max_t = -__builtin_inff();
  double z_s = 0.0, z_t = 0.0;
  double z_ce = 0.0;                    // sum of exp(z_s - max), without a temperature
  double cross_t = 0.0, cross_s = 0.0;  // sum of e_t (t_t - t_s), and of e_s (t_s - t_t)
  double log2_ratio() const { return ::log2(z_t / z_s); }
};

// The factors of one row, as the sweeps multiply by them.
struct RowFactors {
  float inverse_z_s, inverse_z_t;
  float exponent_s, exponent_t;       // Z = 2^exponent / rest, so that no logarithm of Z is rounded
  float rest_s, rest_t, tilt;         // tilt = log2(rest_t / rest_s)
  float weight;                       // of the kd gradient
  float share;                        // beta
  float centre_whole, centre, slope;  // of reverse_kl, and of those with a value sweep: see there

  // Fill in what a value sweep takes to make probabilities of t_s and t_t.
  void normalise(const RowSums& sums) {
    const double log2_z_s = ::log2(sums.z_s), log2_z_t = ::log2(sums.z_t);
    const double whole_s = ::rint(log2_z_s), whole_t = ::rint(log2_z_t);
    exponent_s = static_cast<float>(whole_s);
    exponent_t = static_cast<float>(whole_t);
    rest_s = static_cast<float>(::exp2(whole_s) / sums.z_s);
    rest_t = static_cast<float>(::exp2(whole_t) / sums.z_t);
    tilt = static_cast<float>((whole_t - log2_z_t) - (whole_s - log2_z_s));
  }
};

// forward_kl, reverse_kl, their sum (jeffreys), or neither:
//   sum p (log p - log q) = ln2 sum(e_t (t_t - t_s)) / Z_t - ln Z_t + ln Z_s      gradient q - p
//   sum q (log q - log p) = ln2 sum(e_s (t_s - t_t)) / Z_s - ln Z_s + ln Z_t      gradient
//       q (log q - log p - D) = ln2 q (t_s - t_t + centre),  centre = log2(Z_t / Z_s) - D / ln2
// centre is added as a whole number and a small rest: rounding it would shift every column alike.
// Values come out of the first sweep alone.
template <bool kForward, bool kReverse>
struct KL {
  static constexpr bool kNeedsForward = kForward, kNeedsReverse = kReverse;
  static constexpr bool kNeedsValueSweep = false;
  static constexpr bool kNeedsLogarithms = kReverse;  // for its gradient, besides e_s and e_t

  static double value(const RowSums& sums, RowFactors& factors) {
    const double log_ratio = kLn2 * sums.log2_ratio();
    double total = 0.0;
    if constexpr (kForward) total += kLn2 * sums.cross_t / sums.z_t - log_ratio;
    if constexpr (kReverse) {
      const double reverse = kLn2 * sums.cross_s / sums.z_s + log_ratio;
      const double centre = (log_ratio - reverse) / kLn2;
      factors.centre_whole = static_cast<float>(::rint(centre));
      factors.centre = static_cast<float>(centre - ::rint(centre));
      factors.slope = static_cast<float>(factors.weight * kLn2);
      total += reverse;
    }
    return total;
  }

  // The kd gradient of one register; q is left for the cross-entropy.
  static Vec gradient(const RowFactors& f, Vec t_s, Vec t_t, Vec& q) {
    return gradient(f, t_s, t_t, exp2(t_s), kForward ? exp2(t_t) : t_t, q);
  }

  static Vec gradient(const RowFactors& f, Vec t_s, Vec t_t, Vec e_s, Vec e_t, Vec& q) {
    q = e_s * all(f.inverse_z_s);
    Vec result = all(0.0f);
    if constexpr (kReverse) {
      const Vec log_term = ((t_s - t_t) + all(f.centre_whole)) + all(f.centre);
      result = q * all(f.slope) * where(above(e_s, all(0.0f)), log_term);
    }
    if constexpr (kForward) {  // exactly 0 where p and q are equal
      const Vec p = e_t * all(f.inverse_z_t);
      result = fma(q - p, all(f.weight), result);
    }
    return result;
  }
};

// beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q, 0 < beta < 1:
//   gradient (1 - beta) q (log(q / m) - KL(q, m))
// With d = log2(p / q), w = 2^-|d| and L = -log2(a + (1 - a) w), where a is the share of the
// larger of the two:  log2(p / m) = L + min(d, 0),  log2(q / m) = L - max(d, 0).
// Nothing overflows or cancels more than p and q themselves do, and one exponential gives the
// larger, w times it the smaller.
struct JSD {
  static constexpr bool kNeedsForward = false, kNeedsReverse = false;
  static constexpr bool kNeedsValueSweep = true;
  static constexpr bool kNeedsLogarithms = true;

  // value: a term of D. pull: q dD/dq, both in units of log2.
  static void terms(const RowFactors& f, Vec t_s, Vec t_t, Vec& value, Vec& pull, Vec& q) {
    const Vec zero = all(0.0f), share = all(f.share), rest = all(1.0f) - share;
    const Vec log_q = t_s - all(f.exponent_s), log_p = t_t - all(f.exponent_t);
    const Vec d = (log_p - log_q) + all(f.tilt);
    const Mask p_leads = above(d, zero);
    const Vec most =
        exp2(where(p_leads, log_p, log_q)) * where(p_leads, all(f.rest_t), all(f.rest_s));
    const Vec ratio = exp2(min(d, zero - d));
    const Vec least = most * ratio;
    const Vec p = where(p_leads, most, least);
    q = where(p_leads, least, most);
    const Vec share_of_most = where(p_leads, share, rest);
    const Vec mixed = log2(fma(all(1.0f) - share_of_most, ratio, share_of_most));
    const Vec log_p_m = min(d, zero) - mixed, log_q_m = (zero - max(d, zero)) - mixed;
    q = where(above(q, zero), q);
    pull = where(above(q, zero), rest * q * log_q_m);
    value = pull + where(above(p, zero), share * p * log_p_m);
  }

  static Vec gradient(const RowFactors& f, Vec t_s, Vec t_t, Vec& q) {
    Vec value, pull;
    terms(f, t_s, t_t, value, pull, q);
    return fma(all(f.slope), pull, all(f.centre) * q);
  }
};

}  // namespace mkd::MKD_ISA
