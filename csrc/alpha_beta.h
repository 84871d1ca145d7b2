// The alpha-beta divergence and its limits (Cichocki et al. 2011, equations 17 to 22).
#pragma once

#include "row_factors.h"

namespace mkd::MKD_ISA {

// With a = alpha, b = beta, s = a + b and L = log(p / q), a column's terms are
//                 F                                           q dF/dq
//   else          (a/s p^s + b/s q^s - p^a q^b) / (a b)       (q^s - p^a q^b) / a
//   b = 0         (p^a (a L - 1) + q^a) / a^2                 (q^a - p^a) / a
//   a = 0         (q^b (-b L - 1) + p^b) / b^2                -q^b L
//   s = 0         (expm1(a L) - a L) / a^2                    -expm1(a L) / a
//   a = b = 0     L^2 / 2                                     -L
// Powers of a probability of 0 are 0, 1 or inf as their limits are, 0 log 0 is 0, and a column that
// neither side may take contributes nothing. No power here need decay with q, so that unlikely
// columns may pull as hard as likely ones, and leave float; where a small T squared would bring
// them back, they are made smaller by `unit`, a power of two, from the start.
//
// Where L is small all but rounding cancels in F, and a series takes its place:
//   F = q^s sum over j >= 2 of (s^(j-1) - a^(j-1)) / (b j!) L^j
// whose limit at b = 0 has (j-1) a^(j-2) / j!, and which holds in all the others as it stands.
class AlphaBeta {
 public:
  explicit AlphaBeta(const KD& op)
      : a(op.alpha),
        b(op.beta),
        s(op.alpha + op.beta),
        limit(op.alpha == 0.0 && op.beta == 0.0 ? Limit::kBoth
              : op.alpha + op.beta == 0.0       ? Limit::kSum
              : op.beta == 0.0                  ? Limit::kBeta
              : op.alpha == 0.0                 ? Limit::kAlpha
                                                : Limit::kNone) {
    if (limit != Limit::kBoth && op.kd_scale < 1.0) {
      spare = static_cast<float>(-::floor(::log2(op.kd_scale)));
    }
    one = static_cast<float>(::exp2(-spare));
    const double sum = op.alpha + op.beta;
    smallest = static_cast<float>(0.5 / std::fmax(std::fabs(op.alpha), std::fabs(sum)));
    double factorial = 1.0;
    for (int j = 2; j < kNumTerms + 2; ++j) {
      factorial *= j;
      const double slope = op.beta == 0.0
                               ? (j - 1) * std::pow(op.alpha, j - 2)
                               : (std::pow(sum, j - 1) - std::pow(op.alpha, j - 1)) / op.beta;
      series[j - 2] = static_cast<float>(slope / factorial);
    }
  }

  // What value and pull are to be multiplied by.
  float unit() const { return 1.0f / one; }

  void terms(const RowFactors& f, Log t_s, Log t_t, Vec& value, Vec& pull) const {
    const Log log_p = t_t - f.log2_z_t, log_q = t_s - f.log2_z_s, d = f.log_ratio(t_s, t_t);
    const Vec ratio = in_nats(d);
    const Vec near = near_tie(ratio);
    const Mask is_near = above(all(smallest), max(ratio, all(0.0f) - ratio));
    const Log of_q = s * log_q;
    const Vec power_of_q = power(of_q);  // 1 where s = 0
    switch (limit) {
      case Limit::kBoth:
        value = near;
        pull = all(0.0f) - ratio;
        break;
      case Limit::kSum: {
        const Vec grown = power(a * d) - all(one), tangent = all(a.high * one) * ratio;
        value = where(is_near, all(one) * near, (grown - tangent) / all(a.high * a.high));
        pull = where(is_near, all(-one) * fma(all(a.high), near, ratio), grown / all(-a.high));
        break;
      }
      case Limit::kBeta: {
        const Vec p = power(a * log_p), own = weighted(p, all(a.high) * ratio) - p + power_of_q;
        value = where(is_near, power_of_q * near, own / all(a.high * a.high));
        pull = (power_of_q - p) / all(a.high);
        break;
      }
      case Limit::kAlpha: {
        const Vec tangent = weighted(power_of_q, ratio);
        const Vec own = power(b * log_p) - power_of_q - all(b.high) * tangent;
        value = where(is_near, power_of_q * near, own / all(b.high * b.high));
        pull = all(0.0f) - tangent;
        break;
      }
      case Limit::kNone: {
        const Vec p = power(s * log_p), less = power_of_q - cross(of_q, a * d, log_q);
        const Vec own = fma(all(a.high / s.high), p - power_of_q, less) / all(a.high * b.high);
        value = where(is_near, power_of_q * near, own);
        pull = less / all(a.high);
        break;
      }
    }
    const Mask is_event = above(max(log_p.whole, log_q.whole), all(kNothing));
    value = where(is_event, value);
    pull = where(is_event, pull);
  }

 private:
  enum class Limit { kNone, kBeta, kAlpha, kSum, kBoth };
  static constexpr int kNumTerms = 7;

  TwoFloats a, b, s;
  Limit limit;
  float spare = 0.0f, one;  // how many powers of two are taken off, and what is left of 1
  float smallest;           // |L| below which the series holds
  float series[kNumTerms];

  Vec power(Log log) const {
    log.whole = log.whole - all(spare);
    return where(above(log.whole, all(127.0f)), all(-kNothing), exp2(log));
  }

  static Vec in_nats(Log log) {
    const Vec ln2 = all(static_cast<float>(kLn2));
    return fma(ln2, log.whole, ln2 * log.rest);
  }

  // weight * log, 0 where the weight is.
  static Vec weighted(Vec weight, Vec log) { return where(above(weight, all(0.0f)), weight * log); }

  // p^a q^b as q^s (p / q)^a, which is q^s where p = q. Where q = 0, that alone decides.
  Vec cross(Log of_q, Log of_ratio, Log log_q) const {
    const Log both = reduced({of_q.whole + of_ratio.whole, of_q.rest + of_ratio.rest});
    const Vec without_q = all(b.high > 0.0f ? kNothing : -kNothing);
    return power({where(above(log_q.whole, all(kNothing)), both.whole, without_q), both.rest});
  }

  // F / q^s
  Vec near_tie(Vec ratio) const {
    Vec r = all(series[kNumTerms - 1]);
    for (int j = kNumTerms - 2; j >= 0; --j) r = fma(r, ratio, all(series[j]));
    return r * ratio * ratio;
  }
};

}  // namespace mkd::MKD_ISA
