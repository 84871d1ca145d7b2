// Rows of logits against rows of logits: the sweeps over each, in their order.
#pragma once

#include <vector>

#include "sweeps.h"

namespace mkd::MKD_ISA {

// Short rows go through each sweep together, so that the latencies of one hide behind the others.
// Those of forward KL go faster still: short_rows.h.
constexpr int kMostTogether = 16;

template <class D>
inline void run_together(const KD& op, const Task& task, const int64_t* numbers, int count) {
  alignas(64) float s[kBlock], t[kBlock];
  Row rows[kMostTogether];
  const int room = kBlock / kMostTogether;  // one row: all of the block
  const Sweeps<D> sweeps(op);
  Storage storage(op, D::kNumKept, count);
  for (int i = 0; i < count; ++i) {
    rows[i] = {numbers[i], s + i * room, t + i * room, false, {}, {}, storage.of_row(i)};
    sweeps.collect(rows[i], 0, op.num_columns);
  }
  for (int i = 0; i < count; ++i) {
    sweeps.normalise(rows[i]);
    if constexpr (D::kNeedsValueSweep) sweeps.add_values(rows[i], 0, op.num_columns);
    task.terms_of(numbers[i]) = sweeps.finish(rows[i]);
  }
  if (!op.grad.data) return;
  const Sweeps<KL<false, false>> without_kd(op);
  for (int i = 0; i < count; ++i) {
    if (op.kd_weight == 0.0) {
      without_kd.write_gradient(rows[i], 0, op.num_columns);
    } else {
      sweeps.write_gradient(rows[i], 0, op.num_columns);
    }
    clear_padding(op, op.grad.row(numbers[i]));
  }
}

// The terms and the gradient of those rows of a task that count.
template <class D>
inline void logits_rows(const KD& op, const Task& task) {
  const int most = op.num_columns <= kBlock / kMostTogether ? kMostTogether : 1;
  int64_t numbers[kMostTogether];
  int count = 0;
  for (int64_t n = task.begin; n < task.end; ++n) {
    if (op.counts(n)) numbers[count++] = n;
    if (count == most || (n + 1 == task.end && count > 0)) {
      run_together<D>(op, task, numbers, count);
      count = 0;
    }
  }
}

inline void logits_rows(const KD& op, const Task& task) {
  with_divergence(op, [&](auto policy) { logits_rows<decltype(policy)>(op, task); });
}

// A row in parts that different threads take; each begins where a block does.
inline int64_t begin_of_part(const KD& op, int part, int num_parts) {
  return part == num_parts ? op.num_columns : op.num_columns * part / num_parts / kBlock * kBlock;
}

struct RowPart {
  int64_t begin, end;
  Row row;
  alignas(64) float s[kBlock], t[kBlock];

  void go_on(const Row& whole) {
    row = whole;
    row.s = s;
    row.t = t;
  }
};

// The terms and the gradient of one row that counts, split between threads: the parts' sums are
// joined after each sweep.
template <class D>
inline Terms split_logits_row(const KD& op, int64_t n, int num_parts, const Parallel& parallel) {
  const Sweeps<D> sweeps(op);
  std::vector<RowPart> parts;
  for (int i = 0; i < num_parts; ++i) {
    parts.push_back(
        {begin_of_part(op, i, num_parts), begin_of_part(op, i + 1, num_parts), {}, {}, {}});
  }
  Storage storage(op, D::kNumKept, 1);
  Row whole{n, nullptr, nullptr, false, {}, {}, storage.of_row(0)};
  parallel(num_parts, [&](int i) {
    RowPart& part = parts[i];
    part.go_on(whole);
    sweeps.collect(part.row, part.begin, part.end);
  });
  for (const RowPart& part : parts) sweeps.join(whole.sums, part.row.sums);
  sweeps.normalise(whole);
  if constexpr (D::kNeedsValueSweep) {
    parallel(num_parts, [&](int i) {
      RowPart& part = parts[i];
      part.go_on(whole);
      sweeps.add_values(part.row, part.begin, part.end);
    });
    for (const RowPart& part : parts) {
      whole.sums.value += part.row.sums.value;
      whole.sums.pull += part.row.sums.pull;
      whole.sums.q += part.row.sums.q;
    }
  }
  const Terms terms = sweeps.finish(whole);
  if (!op.grad.data) return terms;
  const Sweeps<KL<false, false>> without_kd(op);
  parallel(num_parts, [&](int i) {
    RowPart& part = parts[i];
    part.go_on(whole);
    if (op.kd_weight == 0.0) {
      without_kd.write_gradient(part.row, part.begin, part.end);
    } else {
      sweeps.write_gradient(part.row, part.begin, part.end);
    }
    if (op.stream_grad) finish_streams();
  });
  clear_padding(op, op.grad.row(n));
  return terms;
}

inline Terms split_logits_row(const KD& op, int64_t n, int num_parts, const Parallel& parallel) {
  Terms terms;
  with_divergence(op, [&](auto policy) {
    terms = split_logits_row<decltype(policy)>(op, n, num_parts, parallel);
  });
  return terms;
}

}  // namespace mkd::MKD_ISA
