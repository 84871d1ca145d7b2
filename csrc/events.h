// What one event adds to a divergence, in double: for the few events that a sparse teacher leaves.
//
// D = sum of F(p, q) over events. An event gives its F and its pull, q dF/dq = dF / d log q, from
// which the gradient to a logit is made: dD/dz_v = (pull_v - q_v sum_u pull_u) / T_s. So the same
// multiple of q may be left out of every pull, as that of reverse_kl leaves out q.
// An event of probability 0 contributes its limit; what is infinite there stays infinite.
#pragma once

#include <cmath>

#include "kd.h"

namespace mkd::MKD_ISA {

struct Probability {
  double value, log;
};

struct Event {
  double value = 0.0, pull = 0.0;
};

// a (log a - log b), 0 where a = 0.
inline double kl_term(Probability a, double log_b) {
  return a.log == -INFINITY ? 0.0 : a.value * (a.log - log_b);
}

// log(share a + (1 - share) b)
inline double log_mixture(double log_a, double log_b, double share) {
  const double x = log_a + ::log(share), y = log_b + ::log1p(-share);
  const double more = x > y ? x : y, less = x > y ? y : x;
  return more == -INFINITY ? more : more + ::log1p(::exp(less - more));
}

inline Event forward_kl(Probability p, Probability q) { return {kl_term(p, q.log), -p.value}; }

inline Event reverse_kl(Probability p, Probability q) {
  const double value = kl_term(q, p.log);
  return {value, value};
}

inline Event jsd(Probability p, Probability q, double beta) {
  const double log_m = log_mixture(p.log, q.log, beta);
  const double pull = (1.0 - beta) * kl_term(q, log_m);
  return {beta * kl_term(p, log_m) + pull, pull};
}

inline Event skew_forward_kl(Probability p, Probability q, double beta) {
  if (p.log == -INFINITY) return {};
  const double log_m = log_mixture(p.log, q.log, beta);
  return {kl_term(p, log_m), -p.value * (1.0 - beta) * ::exp(q.log - log_m)};
}

inline Event skew_reverse_kl(Probability p, Probability q, double beta) {
  if (q.log == -INFINITY) return {};
  const double log_m = log_mixture(q.log, p.log, beta);
  const double value = kl_term(q, log_m);
  return {value, value + q.value * (1.0 - beta) * ::exp(p.log - log_m)};
}

inline Event tvd(Probability p, Probability q) {
  const double d = q.value - p.value;
  const double sign = d > 0.0 ? 1.0 : d < 0.0 ? -1.0 : d;  // 0 at ties; NaN stays
  return {0.5 * sign * d, 0.5 * sign * q.value};
}

// a b, 0 where a is.
inline double product(double a, double b) { return a == 0.0 ? 0.0 : a * b; }

// (a / (a + b) p^(a + b) + b / (a + b) q^(a + b) - p^a q^b) / (a b) and its limits.
inline Event alpha_beta(Probability p, Probability q, double a, double b) {
  if (p.log == -INFINITY && q.log == -INFINITY) return {};
  const double d = p.log - q.log, total = a + b;
  if (a == 0.0 && b == 0.0) return {0.5 * d * d, -d};
  if (total == 0.0) return {(::expm1(a * d) - a * d) / (a * a), -::expm1(a * d) / a};
  if (b == 0.0) {
    const double p_a = ::exp(a * p.log), q_a = ::exp(a * q.log);
    return {(a * product(p_a, d) - p_a + q_a) / (a * a), (q_a - p_a) / a};
  }
  if (a == 0.0) {
    const double p_b = ::exp(b * p.log), q_b = ::exp(b * q.log), bent = product(q_b, -d);
    return {(b * bent - q_b + p_b) / (b * b), bent};
  }
  const double p_all = ::exp(total * p.log), q_all = ::exp(total * q.log);
  const double cross = ::exp(a * p.log + b * q.log);
  return {(a / total * p_all + b / total * q_all - cross) / (a * b), (q_all - cross) / a};
}

inline Event event_of(const KD& op, Probability p, Probability q) {
  switch (op.divergence) {
    case Divergence::kForwardKL:
      return forward_kl(p, q);
    case Divergence::kReverseKL:
      return reverse_kl(p, q);
    case Divergence::kJeffreys: {
      const Event forward = forward_kl(p, q), reverse = reverse_kl(p, q);
      return {forward.value + reverse.value, forward.pull + reverse.pull};
    }
    case Divergence::kJSD:
      return jsd(p, q, op.beta);
    case Divergence::kSkewForwardKL:
      return skew_forward_kl(p, q, op.beta);
    case Divergence::kSkewReverseKL:
      return skew_reverse_kl(p, q, op.beta);
    case Divergence::kTVD:
      return tvd(p, q);
    case Divergence::kAlphaBeta:
      return alpha_beta(p, q, op.alpha, op.beta);
    default:  // none
      return {};
  }
}

}  // namespace mkd::MKD_ISA
