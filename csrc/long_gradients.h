// What the last sweep of a long row makes of a block's exponentials: its gradient.
#pragma once

#include "long_runs.h"

namespace mkd::MKD_ISA {

// What exponentials are multiplied by for the kd gradient, and those of the cross-entropy for its
// own.
struct GradientFactors {
  float s, t, ce;
};

// Writes a block's gradient, pair by pair. kHasKD and kUsed leave out what has no weight. All that
// it takes is at hand, as in Run.
template <class X, class Order, bool kHasKD, Label kUsed>
struct BlockGradient {
  const Exponentials kept;
  const GradientFactors factors;
  const float label_weight;
  const int64_t label;  // from the block's begin; anywhere else where it is in another block
  X* const grad;
  const bool past_caches;

  // Of the pair at i.
  [[gnu::always_inline]] void operator()(int i) const {
    store_pair(Order{}, grad + i, pair(i), past_caches);
  }

  void write(int size) const {
    int i = 0;
    for (; i + kPair <= size; i += kPair) (*this)(i);
    if (i < size) store_pair(Order{}, grad + i, pair(i), size - i);
  }

 private:
  [[gnu::always_inline]] Pair pair(int i) const {
    Pair pair{columns(i), columns(i + Vec::kLanes)};
    if (kUsed != Label::kNone && i <= label && label < i + kPair) [[unlikely]] {
      take_off_label(pair, Order::lane_of(static_cast<int>(label) - i));
    }
    return pair;
  }

  // Without a label, exactly 0 where p and q are equal.
  [[gnu::always_inline]] Vec columns(int i) const {
    const Vec x_s = load(kept.e_s + i), x_t = load(kept.e_t + i), ce = all(factors.ce);
    if constexpr (kUsed == Label::kNone) {
      return kHasKD ? x_s * all(factors.s) - x_t * all(factors.t) : all(0.0f);
    }
    Vec result = all(0.0f);
    if constexpr (kUsed == Label::kSame) result = x_s * all(factors.s + factors.ce);
    if constexpr (kUsed == Label::kSquare) result = x_s * fma(x_s, ce, all(factors.s));
    if constexpr (kUsed == Label::kOwn) {
      result = fma(load(kept.e_own + i), ce, x_s * all(factors.s));
    }
    return kHasKD ? fma(x_t, all(-factors.t), result) : result;
  }

  void take_off_label(Pair& pair, int lane) const {
    float lanes[kPair];
    store(lanes, pair.a);
    store(lanes + Vec::kLanes, pair.b);
    lanes[lane] -= label_weight;
    pair = {load(lanes), load(lanes + Vec::kLanes)};
  }
};

}  // namespace mkd::MKD_ISA
