// Rows of logits against rows of logits: the sweeps over each, in their order.
#pragma once

#include "sweeps.h"

namespace mkd::MKD_ISA {

// Short rows go through each sweep together, so that the latencies of one hide behind the others.
// Those of forward KL go faster still: short_rows.h.
constexpr int kMostTogether = 16;

template <class D>
inline void run_together(const KD& op, const int64_t* numbers, int count, Terms* terms) {
  alignas(64) float s[kBlock], t[kBlock];
  Row rows[kMostTogether];
  const int room = kBlock / kMostTogether;  // one row: all of the block
  const Sweeps<D> sweeps(op);
  for (int i = 0; i < count; ++i) {
    rows[i] = {numbers[i], s + i * room, t + i * room, false, {}, {}};
    sweeps.collect(rows[i], 0, op.num_columns);
  }
  for (int i = 0; i < count; ++i) {
    sweeps.normalise(rows[i]);
    if constexpr (D::kNeedsValueSweep) sweeps.add_values(rows[i], 0, op.num_columns);
    terms[numbers[i]] = sweeps.finish(rows[i]);
  }
  if (!op.grad.data) return;
  const Sweeps<KL<false, false>> without_kd(op);
  for (int i = 0; i < count; ++i) {
    if (op.kd_weight == 0.0) {
      without_kd.write_gradient(rows[i], 0, op.num_columns);
    } else {
      sweeps.write_gradient(rows[i], 0, op.num_columns);
    }
    sweeps.clear_padding(op.grad.row(numbers[i]));
  }
}

// terms[n] and the gradient of those rows in [begin, end) that count.
template <class D>
inline void logits_rows(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  const int most = op.num_columns <= kBlock / kMostTogether ? kMostTogether : 1;
  int64_t numbers[kMostTogether];
  int count = 0;
  for (int64_t n = begin; n < end; ++n) {
    if (op.counts(n)) numbers[count++] = n;
    if (count == most || (n + 1 == end && count > 0)) {
      run_together<D>(op, numbers, count, terms);
      count = 0;
    }
  }
}

inline void logits_rows(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  with_divergence(op, [&](auto policy) { logits_rows<decltype(policy)>(op, begin, end, terms); });
}

}  // namespace mkd::MKD_ISA
