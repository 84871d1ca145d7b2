// The divergences, each as what a row's sweeps must collect and what they must write.
//
// A policy is made of the call's options and says
//   kNeedsForward, kNeedsReverse  which cross sums of the first sweep its value takes
//   kNeedsValueSweep              or that its value takes a sweep over normalised probabilities
//   kOfLogits                     whether it is given z_s and z_t instead of t_s and t_t
//   kTakesPowers                  whether errors of t_s and t_t are multiplied by large values
//   kNumKept                      how many numbers a column its gradient takes from the sweep that
//                                 made its value: e_s, log2 e_t / e_s and e_t of the first, q and
//                                 the pull of a value sweep
//   terms(factors, t_s, t_t, value, pull, q)   of a register of columns: F, q dF/dq and q
//   gradient(factors, kept, q)    its part of the gradient, and q; where it keeps nothing, of e_s
//                                 and e_t, or of the logits
// The same multiple of q may be left out of every pull, since dD/dz_v = (pull_v - q_v sum of pulls)
// / T; events.h leaves out the same.
#pragma once

#include <type_traits>

#include "alpha_beta.h"
#include "mixtures.h"

namespace mkd::MKD_ISA {

// forward_kl, reverse_kl, their sum (jeffreys), or neither:
//   sum p (log p - log q) = ln2 sum(e_t (t_t - t_s)) / Z_t - ln Z_t + ln Z_s      gradient q - p
//   sum q (log q - log p) = ln2 sum(e_s (t_s - t_t)) / Z_s - ln Z_s + ln Z_t      gradient
//       q (log q - log p - D) = ln2 q (t_s - t_t + centre),  centre = -sum(e_s (t_s - t_t)) / Z_s
// The gradient's logarithms are those that were summed up: where one column is all of q, centre is
// its own, and nothing is left.
// Values come out of the first sweep alone.
template <bool kForward, bool kReverse>
struct KL {
  static constexpr bool kNeedsForward = kForward, kNeedsReverse = kReverse;
  static constexpr bool kNeedsValueSweep = false, kOfLogits = false, kTakesPowers = false;
  static constexpr int kNumKept = !kReverse ? 0 : kForward ? 3 : 2;

  explicit KL(const KD&) {}

  static double value(const RowSums& sums, RowFactors&) {
    const double log_ratio = kLn2 * sums.log2_ratio();
    double total = 0.0;
    if constexpr (kForward) total += kLn2 * sums.cross_t / sums.z_t - log_ratio;
    if constexpr (kReverse) {
      total += kLn2 * sums.cross_s / sums.z_s + log_ratio;
    }
    if constexpr (!kForward && !kReverse) total = sums.broken();
    return total;
  }

  // Column by column, for a teacher that does not fill a row's sums.
  static void terms(const RowFactors& f, Log t_s, Log t_t, Vec& value, Vec& pull, Vec& q) {
    const Column c = f.column(t_s, t_t);
    const Vec zero = all(0.0f), log_ratio = all(static_cast<float>(kLn2)) * c.d;
    value = pull = zero;
    if constexpr (kReverse) value = pull = where(above(c.q, zero), zero - c.q * log_ratio);
    if constexpr (kForward) {
      value = value + where(above(c.p, zero), c.p * log_ratio);
      pull = pull - c.p;
    }
    q = c.q;
  }

  // The factors of a block whose exponents are above the row's by fall_s and fall_t, and whose kept
  // ratios are shifted.
  static RowFactors of_block(RowFactors f, const RowSums& sums, double fall_s, double fall_t,
                             double shift) {
    const double left_s = ::exp2(-fall_s);
    const double centre = -sums.cross_s / sums.z_s + (fall_t - fall_s) - shift;
    f.inverse_z_s = static_cast<float>(left_s / sums.z_s);
    f.inverse_z_t = static_cast<float>(::exp2(-fall_t) / sums.z_t);
    f.centre = TwoFloats(left_s > 0.0 ? centre : 0.0);
    return f;
  }

  // The kd gradient of one register; q is left for the cross-entropy.
  static Vec gradient(const RowFactors& f, const Vec (&kept)[3], Vec& q) {
    q = kept[0] * all(f.inverse_z_s);
    Vec grad = all(0.0f);
    if constexpr (kForward) {  // exactly 0 where p and q are equal
      grad = (q - kept[kReverse ? 2 : 1] * all(f.inverse_z_t)) * all(f.weight);
    }
    if constexpr (!kReverse) return grad;
    const Vec log_ratio = (all(f.centre.high) - kept[1]) + all(f.centre.low);
    return fma(q * all(static_cast<float>(kLn2) * f.weight), log_ratio, grad);
  }
};

// 1/2 sum |p - q|:  dD/dq = 1/2 sign(q - p), and 0 at ties. A tie is what the rounding of the two Z
// cannot tell from one.
class TotalVariation {
 public:
  explicit TotalVariation(const KD&) {}

  void terms(const Column& c, Vec& value, Vec& pull) const {
    const Vec zero = all(0.0f), noise = all(0x1p-23f);
    const Vec half_q = all(0.5f) * c.q;
    value = all(0.5f) * (max(c.p, c.q) - min(c.p, c.q));
    pull = where(above(zero - c.d, noise), half_q) - where(above(c.d, noise), half_q);
  }
};

// The gradient of one register from its pull.
inline Vec gradient_of_pull(const RowFactors& f, Vec pull, Vec q) {
  const Vec rest = fma(q, all(-f.pulls.high), pull);  // 0 where one column is all
  return all(f.weight) * fma(q, all(-f.pulls.low), rest);
}

// A policy of a class whose terms(column, value, pull), or terms(factors, t_s, t_t, value, pull),
// say all there is to it.
template <class Terms>
class OfColumns : public Terms {
 public:
  static constexpr bool kNeedsForward = false, kNeedsReverse = false;
  static constexpr bool kNeedsValueSweep = true, kOfLogits = false;
  static constexpr bool kTakesPowers = std::is_same_v<Terms, AlphaBeta>;
  static constexpr int kNumKept = 2;

  using Terms::Terms;

  void terms(const RowFactors& f, Log t_s, Log t_t, Vec& value, Vec& pull, Vec& q) const {
    if constexpr (requires(const Column& c) { Terms::terms(c, value, pull); }) {
      const Column c = f.column(t_s, t_t);
      Terms::terms(c, value, pull);
      q = c.q;
    } else {
      Terms::terms(f, t_s, t_t, value, pull);
      q = exp2(t_s) * all(f.inverse_z_s);
    }
  }

  static RowFactors of_block(const RowFactors& f, const RowSums&, double, double, double) {
    return f;
  }

  static Vec gradient(const RowFactors& f, const Vec (&kept)[3], Vec& q) {
    q = kept[0];
    return gradient_of_pull(f, kept[1], q);
  }
};

// What the terms of a policy are to be multiplied by.
template <class D>
inline float unit_of(const D& divergence) {
  if constexpr (requires { divergence.unit(); }) return divergence.unit();
  return 1.0f;
}

// Mean over V columns of (z_s - z_t)^2, gradient 2 (z_s - z_t) / V: no distribution, no
// temperature, and no exponential but the cross-entropy's. In a broken row centre is NaN, else 0.
class LogitMSE {
 public:
  static constexpr bool kNeedsForward = false, kNeedsReverse = false;
  static constexpr bool kNeedsValueSweep = false, kOfLogits = true, kTakesPowers = false;
  static constexpr int kNumKept = 0;

  explicit LogitMSE(const KD& op) : share(static_cast<float>(1.0 / op.num_columns)) {}

  // NaN where a logit is +inf, or where a side has none above -inf.
  static double value(const RowSums& sums, RowFactors& f) {
    const double broken = 0.0 * sums.max_s + 0.0 * sums.max_t;
    f.centre.high = static_cast<float>(0.0 * sums.value + broken);
    return sums.value + broken;
  }

  void terms(const RowFactors&, Log z_s, Log z_t, Vec& value, Vec& pull, Vec&) const {
    const Vec error = z_s.whole - z_t.whole;
    value = error * error * all(share);
    pull = all(0.0f);
  }

  Vec gradient(const RowFactors& f, const Vec (&z)[3], Vec&) const {
    return fma(all(2.0f * share * f.weight), z[0] - z[1], all(f.centre.high));
  }

 private:
  float share;
};

// act(policy) with that of the call.
template <class Act>
inline void with_divergence(const KD& op, Act act) {
  switch (op.divergence) {
    case Divergence::kForwardKL:
      return act(KL<true, false>(op));
    case Divergence::kReverseKL:
      return act(KL<false, true>(op));
    case Divergence::kJeffreys:
      return act(KL<true, true>(op));
    case Divergence::kJSD:
      return act(OfColumns<Mixture<false>>(op));
    case Divergence::kSkewForwardKL:
    case Divergence::kSkewReverseKL:
      return act(OfColumns<Mixture<true>>(op));
    case Divergence::kTVD:
      return act(OfColumns<TotalVariation>(op));
    case Divergence::kAlphaBeta:
      return act(OfColumns<AlphaBeta>(op));
    case Divergence::kLogitMSE:
      return act(LogitMSE(op));
    case Divergence::kNone:
      return act(KL<false, false>(op));
  }
}

}  // namespace mkd::MKD_ISA
