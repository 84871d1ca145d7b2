// Two registers of neighbouring columns at a time, in the order that costs least to load and store.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include "vec.h"

namespace mkd::MKD_ISA {

constexpr int kPair = 2 * Vec::kLanes;

struct Pair {
  Vec a, b;
};

// The columns of a pair as they lie in memory.
struct InOrder {
  static constexpr int lane_of(int column) { return column; }
  static constexpr int count_in_a(int count) { return std::min(count, Vec::kLanes); }
};

// Even columns in a, odd ones in b: a BFloat16 is the upper half of a float, so that either comes
// out of 32 bits in one instruction.
struct EvenOdd {
  static constexpr int lane_of(int column) { return column % 2 * Vec::kLanes + column / 2; }
  static constexpr int count_in_a(int count) { return (count + 1) / 2; }
};

// Both sides of a loss must have their columns in the same lanes.
template <class S, class T>
using OrderOf = std::conditional_t<std::endian::native == std::endian::little &&
                                       std::is_same_v<S, BFloat16> && std::is_same_v<T, BFloat16>,
                                   EvenOdd, InOrder>;

template <class T>
inline Pair load_pair(InOrder, const T* p) {
  return {load(p), load(p + Vec::kLanes)};
}
inline Pair load_pair(EvenOdd, const BFloat16* p) {
  Pair pair;
  load_even_odd(p, pair.a, pair.b);
  return pair;
}

// The first count columns, and `rest` in the lanes of others.
template <class Order, class T>
inline Pair load_pair(Order order, const T* p, int count, Vec rest) {
  T padded[kPair] = {};
  __builtin_memcpy(padded, p, count * sizeof(T));
  const Pair pair = load_pair(order, padded);
  const int in_a = Order::count_in_a(count);
  return {where(first_lanes(in_a), pair.a, rest), where(first_lanes(count - in_a), pair.b, rest)};
}

// Past the caches only where p is aligned to a pair. Of EvenOdd no NaN may be stored.
template <class T>
inline void store_pair(InOrder, T* p, const Pair& pair, bool past_caches) {
  if (past_caches) {
    stream(p, pair.a);
    stream(p + Vec::kLanes, pair.b);
  } else {
    store(p, pair.a);
    store(p + Vec::kLanes, pair.b);
  }
}
inline void store_pair(EvenOdd, BFloat16* p, const Pair& pair, bool past_caches) {
  store_even_odd(p, pair.a, pair.b, past_caches);
}

template <class Order, class T>
inline void store_pair(Order order, T* p, const Pair& pair, int count) {
  T padded[kPair];
  store_pair(order, padded, pair, false);
  __builtin_memcpy(p, padded, count * sizeof(T));
}

}  // namespace mkd::MKD_ISA
