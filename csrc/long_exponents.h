// What the exponentials of a long row refer to: the largest logits of either side so far, or those
// of the time when they were taken.
#pragma once

#include <algorithm>
#include <cmath>

#include "long_runs.h"

namespace mkd::MKD_ISA {

struct Reference {
  float s, t;
};

// How far the exponents of what refers to `from` are above those of what refers to `to`.
inline double fall(const Exponent& exponent, float from, float to) {
  return exponent.c_of(reference_of(to)) - exponent.c_of(reference_of(from));
}

// What is left of exponentials whose reference is below the row's. It is above where there is
// nothing but zeros.
inline float rest_of(const Exponent& exponent, float from, float to) {
  return from == to ? 1.0f : static_cast<float>(::exp2(-std::max(0.0, fall(exponent, from, to))));
}

// From logits to exponents, of the student's, the teacher's and the cross-entropy's own.
template <Label kLabel>
struct LongExponents {
  const Exponent s, t, own;

  explicit LongExponents(const KD& op)
      : s{static_cast<float>(op.logit_scale * kLog2E / op.temperature)},
        t{static_cast<float>(op.teacher_logit_scale * kLog2E / op.teacher_temperature)},
        own{static_cast<float>(op.logit_scale * kLog2E)} {}

  // Whether a row can be made of these sums.
  bool are_good(const RowSums& sums) const {
    return is_within_reach(s, sums.max_s) && is_within_reach(own, sums.max_s) &&
           is_within_reach(t, sums.max_t) && !std::isnan(sums.z_s + sums.z_t);
  }

  // Of a stored logit, in the cross-entropy.
  double own_of(float logit, float reference) const {
    return double(logit) * own.rate - c_own(reference_of(reference));
  }

  // Whether logits are too far above the reference of sums.
  bool rise_too_far(const RowSums& sums, float most_s, float most_t) const {
    const bool is_own_steeper = kLabel == Label::kOwn && own.rate > s.rate;
    return rise_of(is_own_steeper ? own : s, sums.max_s, most_s) > kMostRise ||
           rise_of(t, sums.max_t, most_t) > kMostRise;
  }

  // Refer the sums to the largest logits so far.
  void raise(RowSums& sums, float most_s, float most_t) const {
    most_s = std::max(most_s, sums.max_s);
    most_t = std::max(most_t, sums.max_t);
    const double fall_s = fall(s, sums.max_s, most_s), fall_t = fall(t, sums.max_t, most_t);
    const double fall_own = c_own(reference_of(most_s)) - c_own(reference_of(sums.max_s));
    sums.cross_t = ::exp2(-fall_t) * (sums.cross_t + sums.z_t * (fall_s - fall_t));
    sums.z_s *= ::exp2(-fall_s);
    sums.z_t *= ::exp2(-fall_t);
    sums.z_ce *= ::exp2(-fall_own);
    sums.max_s = most_s;
    sums.max_t = most_t;
  }

  // Adds the sums of other columns of the same row.
  void join(RowSums& to, RowSums others) const {
    raise(to, others.max_s, others.max_t);
    raise(others, to.max_s, to.max_t);
    to.add(others);
  }

 private:
  // In powers of two, and within the error budget: the error of an exponential grows with t.
  static constexpr double kMostRise = 3.0;
  // Of c, in the units of near_runs.h.
  static constexpr double kFarthest = 0x1p17;

  static bool is_within_reach(const Exponent& exponent, float reference) {
    return std::abs(exponent.c_of(reference_of(reference))) <= kFarthest;
  }

  // What there is after nothing may be anywhere.
  static double rise_of(const Exponent& exponent, float from, float to) {
    return to == from ? 0.0 : from == kNothing ? double(INFINITY) : fall(exponent, from, to);
  }

  // Of the squares of the student's exponentials, where the cross-entropy sums these up, or of its
  // own.
  double c_own(float reference) const {
    return kLabel == Label::kSquare ? 2.0 * s.c_of(reference) : own.c_of(reference);
  }
};

}  // namespace mkd::MKD_ISA
