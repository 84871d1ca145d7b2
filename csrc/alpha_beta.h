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
// columns may pull as hard as likely ones.
class AlphaBeta {
 public:
  explicit AlphaBeta(const KD& op)
      : a(static_cast<float>(op.alpha)),
        b(static_cast<float>(op.beta)),
        s(static_cast<float>(op.alpha + op.beta)),
        limit(op.alpha == 0.0 && op.beta == 0.0 ? Limit::kBoth
              : op.alpha + op.beta == 0.0       ? Limit::kSum
              : op.beta == 0.0                  ? Limit::kBeta
              : op.alpha == 0.0                 ? Limit::kAlpha
                                                : Limit::kNone) {}

  void terms(const Column& c, Vec& value, Vec& pull) const {
    switch (limit) {
      case Limit::kBoth:
        both_zero(c, value, pull);
        break;
      case Limit::kSum:
        sum_zero(c, value, pull);
        break;
      case Limit::kBeta:
        beta_zero(c, value, pull);
        break;
      case Limit::kAlpha:
        alpha_zero(c, value, pull);
        break;
      case Limit::kNone:
        no_limit(c, value, pull);
        break;
    }
    const Mask is_event = above(max(c.log_p, c.log_q), all(kNothing));
    value = where(is_event, value);
    pull = where(is_event, pull);
  }

 private:
  enum class Limit { kNone, kBeta, kAlpha, kSum, kBoth };

  float a, b, s;
  Limit limit;

  static Vec power(Vec log) { return where(above(log, all(127.0f)), all(-kNothing), exp2(log)); }

  // Of the very logarithms that the powers take: near p = q their errors cancel.
  static Vec log_ratio(const Column& c) {
    return all(static_cast<float>(kLn2)) * (c.log_p - c.log_q);
  }

  // weight * log, 0 where the weight is.
  static Vec weighted(Vec weight, Vec log) { return where(above(weight, all(0.0f)), weight * log); }

  void both_zero(const Column& c, Vec& value, Vec& pull) const {
    const Vec ratio = log_ratio(c);
    value = all(0.5f) * ratio * ratio;
    pull = all(0.0f) - ratio;
  }

  void sum_zero(const Column& c, Vec& value, Vec& pull) const {
    const Vec x = all(a) * c.d;
    const Vec grown = where(above(x, all(127.0f)), all(-kNothing), exp2_minus_1(x));
    value = (grown - all(static_cast<float>(kLn2)) * x) / all(a * a);
    pull = grown / all(-a);
  }

  void beta_zero(const Column& c, Vec& value, Vec& pull) const {
    const Vec p = power(all(a) * c.log_p), q = power(all(a) * c.log_q);
    value = (all(a) * weighted(p, log_ratio(c)) - p + q) / all(a * a);
    pull = (q - p) / all(a);
  }

  void alpha_zero(const Column& c, Vec& value, Vec& pull) const {
    const Vec p = power(all(b) * c.log_p), q = power(all(b) * c.log_q);
    const Vec log = weighted(q, log_ratio(c));
    value = (p - q - all(b) * log) / all(b * b);
    pull = all(0.0f) - log;
  }

  void no_limit(const Column& c, Vec& value, Vec& pull) const {
    const Vec p = power(all(s) * c.log_p), q = power(all(s) * c.log_q);
    // log(p^a q^b) by way of q^s, so that equal sides leave nothing; where q = 0, directly.
    const Vec log_cross = fma(all(a), c.log_p - c.log_q, all(s) * c.log_q);
    const Vec cross = power(where(above(c.log_q, all(kNothing)), log_cross, all(b) * c.log_q));
    value = (all(a / s) * p + all(b / s) * q - cross) / all(a * b);
    pull = (q - cross) / all(a);
  }
};

}  // namespace mkd::MKD_ISA
