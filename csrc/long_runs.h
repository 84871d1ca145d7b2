// What the first sweep of a long row does with its logits: exponentials, kept and added up.
#pragma once

#include "pairs.h"
#include "sweeps.h"

namespace mkd::MKD_ISA {

// From logits to exponents: t = z rate - c, where c is the rounded z rate of a reference. This is
// one rounding of t; that of c is common to all that refer to it. Without a fused multiply-add it
// would be that of large numbers, and t is made of the difference of logits.
struct Exponent {
  float rate;

  double c_of(float reference) const {
    return kFmaRoundsOnce ? double(reference * rate) : double(reference) * rate;
  }
  Vec operand_of(float reference) const {
    return all(kFmaRoundsOnce ? -(reference * rate) : reference);
  }
  Vec operator()(Vec z, Vec operand) const {
    return kFmaRoundsOnce ? fma(z, all(rate), operand) : (z - operand) * all(rate);
  }
};

// Sums of a block, in double, and its largest logits.
template <Label kLabel>
struct BlockSums {
  Vec most_s = all(kNothing), most_t = most_s;
  Doubles z_s, z_t, z_ce, cross;

  void add_to(RowSums& sums) const {
    const double total_s = z_s.sum();
    sums.z_s += total_s;
    sums.z_t += z_t.sum();
    sums.z_ce += kLabel == Label::kSame ? total_s : z_ce.sum();
    sums.cross_t += cross.sum();
  }
};

// A few registers of columns, which are added up in float. All that it takes is at hand: what
// belongs to the row would be read again after each store.
template <Label kLabel>
struct Run {
  static constexpr int kExponentials = kLabel == Label::kOwn ? 3 : 2;

  const Exponent exponent_s, exponent_t, exponent_own;
  const Vec operand_s, operand_t, operand_own;
  float *const e_s, *const e_t, *const e_own;
  Vec most_s, most_t;
  Vec z_s = all(0.0f), z_t = z_s, z_ce = z_s, cross = z_s;

  // One register of either side: its exponentials are kept and added.
  [[gnu::always_inline]] void add(int i, Vec s, Vec t) {
    most_s = max(s, most_s);  // a NaN is passed over here, and found in the sums
    most_t = max(t, most_t);
    const Vec t_s = exponent_s(s, operand_s), t_t = exponent_t(t, operand_t);
    Vec x[kExponentials];
    Mask counts[kExponentials];
    if constexpr (kLabel == Label::kOwn) {
      exp2({t_s, t_t, exponent_own(s, operand_own)}, x, counts);
      store(e_own + i, x[2]);
      z_ce = z_ce + x[2];
    } else {
      exp2({t_s, t_t}, x, counts);
      if constexpr (kLabel == Label::kSquare) z_ce = fma(x[0], x[0], z_ce);
    }
    store(e_s + i, x[0]);
    store(e_t + i, x[1]);
    z_s = z_s + x[0];
    z_t = z_t + x[1];
    // An event of probability 0 contributes 0, though its logarithm is infinite.
    cross = fma(x[1], where(counts[1], t_t - t_s), cross);
  }

  [[gnu::always_inline]] void add(int i, const Pair& s, const Pair& t) {
    add(i, s.a, t.a);
    add(i + Vec::kLanes, s.b, t.b);
  }
};

// Fetches a line for each line of a pair that is used now.
template <class X>
inline void fetch_pair(const X* p) {
  constexpr int kLine = 64;
  const char* const ahead = reinterpret_cast<const char*>(p) + kFetchAheadBytes;
  for (size_t at = 0; at < kPair * sizeof(X); at += kLine) __builtin_prefetch(ahead + at);
}

}  // namespace mkd::MKD_ISA
