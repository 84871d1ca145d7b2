// What the first sweep of a long row does with its logits: exponentials, kept and added up.
#pragma once

#include <cmath>

#include "pairs.h"
#include "sweeps.h"

namespace mkd::MKD_ISA {

// From logits to exponents: t = z rate - c, where c is what a reference's z rate is rounded down
// to, a multiple of 2^-kFractionBits that a float holds (see near_runs.h). This is one rounding of
// t. Without a fused multiply-add it would be that of large numbers, and t is made of the
// difference of logits.
struct Exponent {
  float rate;

  double c_of(float reference) const {
    constexpr double kSteps = 1 << kFractionBits;
    const double exponent = double(reference) * rate;
    return kFmaRoundsOnce ? ::floor(exponent * kSteps) / kSteps : exponent;
  }
  Vec operand_of(float reference) const {
    return all(kFmaRoundsOnce ? static_cast<float>(-c_of(reference)) : reference);
  }
  Vec operator()(Vec z, Vec operand) const {
    return kFmaRoundsOnce ? fma(z, all(rate), operand) : (z - operand) * all(rate);
  }
};

// Registers that are added up in float: half as many where more of them make a row.
constexpr int kRun = (Vec::kLanes < 16 ? 16 : 32) * Vec::kLanes;

// Where the exponentials of columns go.
struct Exponentials {
  float *e_s, *e_t, *e_own;
};

// Sums of blocks, in double.
template <Label kLabel>
struct BlockSums {
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
  const Exponentials kept;
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
      store(kept.e_own + i, x[2]);
      z_ce = z_ce + x[2];
    } else {
      exp2({t_s, t_t}, x, counts);
      if constexpr (kLabel == Label::kSquare) z_ce = fma(x[0], x[0], z_ce);
    }
    store(kept.e_s + i, x[0]);
    store(kept.e_t + i, x[1]);
    z_s = z_s + x[0];
    z_t = z_t + x[1];
    // An event of probability 0 contributes 0, though its logarithm is infinite.
    cross = fma(x[1], where(counts[1], t_t - t_s), cross);
  }

  [[gnu::always_inline]] void add(int i, const Pair& s, const Pair& t) {
    add(i, s.a, t.a);
    add(i + Vec::kLanes, s.b, t.b);
  }

  void add_to(BlockSums<kLabel>& sums) const {
    sums.z_s.add(z_s);
    sums.z_t.add(z_t);
    if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) sums.z_ce.add(z_ce);
    sums.cross.add(cross);
  }
};

// Fetches a line for each line of a pair that is used now: into the second-level cache, for what is
// on its way to the first one keeps the exponentials from coming and going. Inlined, for calls of
// what only fetches are taken for calls of nothing.
template <class X>
[[gnu::always_inline]] inline void fetch_pair(const X* p) {
  constexpr int kLine = 64;
  const char* const ahead = reinterpret_cast<const char*>(p) + kFetchAheadBytes;
  for (size_t at = 0; at < kPair * sizeof(X); at += kLine) __builtin_prefetch(ahead + at, 0, 2);
}

// Fetches a line of each page of a row that is taken next, all at once: where the processor has to
// look up where each of them lies, page by page on the way, it waits each time, and can do several.
template <class X>
[[gnu::always_inline]] inline void fetch_pages(const X* row, int64_t count) {
  constexpr int64_t kInPage = 4096 / sizeof(X);
  for (int64_t i = 0; i < count; i += kInPage) __builtin_prefetch(row + i, 0, 2);
}

}  // namespace mkd::MKD_ISA
