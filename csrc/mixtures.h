// The divergences from a mixture of the two distributions: jsd, skew_forward_kl, skew_reverse_kl.
#pragma once

#include "row_factors.h"

namespace mkd::MKD_ISA {

// w_p KL(p, m) + w_q KL(q, m), m = a p + (1 - a) q, w_p + w_q = 1, 0 < a < 1:
//   jsd              w_p = a = beta
//   skew_forward_kl  w_p = 1, a = beta           (m is beta of p, the first)
//   skew_reverse_kl  w_p = 0, 1 - a = beta       (m is beta of q, the first)
//   dD/dq = w_q log(q / m) + k p / m,   k = 0 for jsd, -(1 - a) for skew_forward_kl, a for
// skew_reverse_kl, up to a constant.
//
// With d = log2(p / q), w = 2^-|d| and L = -log2(b + (1 - b) w), where b is the share of the
// larger of the two:  log2(p / m) = L + min(d, 0),  log2(q / m) = L - max(d, 0).
// Nothing overflows or cancels more than p and q themselves do.
template <bool kSkewed>
class Mixture {
 public:
  explicit Mixture(const KD& op) {
    const bool is_reverse = op.divergence == Divergence::kSkewReverseKL;
    const double a = is_reverse ? 1.0 - op.beta : op.beta;
    const double w_p = !kSkewed ? a : is_reverse ? 0.0 : 1.0;
    // The smaller as it is, and both summing to 1: of equal sides nothing is left.
    share_p = static_cast<float>(a);
    share_q = static_cast<float>(1.0 - a);
    (a < 0.5 ? share_q : share_p) = 1.0f - (a < 0.5 ? share_p : share_q);
    weight_p = static_cast<float>(kLn2 * w_p);
    weight_q = static_cast<float>(kLn2 * (1.0 - w_p));
    skew = static_cast<float>(is_reverse ? a : a - 1.0);
  }

  void terms(const Column& c, Vec& value, Vec& pull) const {
    const Vec zero = all(0.0f);
    const Vec share_of_most = where(c.p_leads, all(share_p), all(share_q));
    const Vec share_of_least = where(c.p_leads, all(share_q), all(share_p));
    const Vec mixed = fma(share_of_least, c.ratio, share_of_most);  // m / the larger
    const Vec log_mixed = log2(mixed);
    const Vec log_p_m = min(c.d, zero) - log_mixed, log_q_m = (zero - max(c.d, zero)) - log_mixed;
    const Mask has_q = above(c.q, zero);
    const Vec own = where(has_q, all(weight_q) * c.q * log_q_m);
    value = own + where(above(c.p, zero), all(weight_p) * c.p * log_p_m);
    pull = own;
    if constexpr (kSkewed) {
      const Vec p_of_most = where(c.p_leads, all(1.0f), c.ratio);
      pull = pull + where(has_q, all(skew) * c.q * (p_of_most / mixed));
    }
  }

 private:
  float share_p, share_q, weight_p, weight_q, skew;
};

}  // namespace mkd::MKD_ISA
