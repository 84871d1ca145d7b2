// What a sparse or sampled teacher left of one row: its K entries, read where they lie, and which
// block of columns each belongs to.
#pragma once

#include <memory>

#include "block.h"

namespace mkd::MKD_ISA {

// An id that the teacher kept, and what becomes of it. `target` is log p, or a sampled id's weight.
struct Kept {
  int64_t column;
  int32_t next;  // of those in the same block; -1: the last
  float logit;   // the student's, scaled and capped
  double target;
  double share, label_share;  // the student's probability at T_s; exp(logit), but for a factor
  double pull;                // see events.h
  float gradient;
};

// A row's columns in blocks, which begin where the gradient is aligned if that is to be written
// past the caches: the first block may be short.
struct Blocks {
  int64_t num_columns = 0, first_end = 0;

  int64_t count() const { return index(num_columns - 1) + 1; }
  int64_t index(int64_t column) const {
    return column < first_end ? 0 : (first_end > 0) + (column - first_end) / kBlock;
  }
  int64_t begin(int64_t b) const { return b == 0 ? 0 : first_end + (b - (first_end > 0)) * kBlock; }
  int size(int64_t b) const {
    const int64_t end = begin(b + 1);
    return static_cast<int>((end < num_columns ? end : num_columns) - begin(b));
  }
};

class KeptRow {
 public:
  explicit KeptRow(const KD& op)
      : teacher(op.sparse),
        kept(new Kept[op.sparse.num_kept]),
        heads(new Head[op.num_columns / kBlock + 2]),
        cap(op.teacher_softcap),
        scale(op.teacher_logit_scale),
        temperature(op.teacher_temperature) {}

  Kept* begin() const { return kept.get(); }
  Kept* end() const { return kept.get() + num_kept; }
  int64_t size() const { return num_kept; }

  // The entries of row n that are not empty.
  void read(int64_t n, const Blocks& blocks) {
    num_kept = 0;
    for (int64_t b = 0; b < blocks.count(); ++b) heads[b].first = -1;
    for (int64_t begin = 0; begin < teacher.num_kept; begin += kBlock) {
      const int64_t rest = teacher.num_kept - begin;
      read_some(n, begin, rest < kBlock ? static_cast<int>(rest) : kBlock, blocks);
    }
    if (!is_sample) finish_tail();
  }

  // log of the teacher's probability outside the kept ids, as far as its tail knows of it.
  double log_rest() const { return log_outside; }

  // act(kept) for those in block b.
  template <class Act>
  void each_in(int64_t b, Act act) const {
    for (int32_t i = heads[b].first; i >= 0; i = kept[i].next) act(kept[i]);
  }

 private:
  struct Head {
    int32_t first;
  };

  const Sparse& teacher;
  const std::unique_ptr<Kept[]> kept;
  const std::unique_ptr<Head[]> heads;
  const double cap, scale, temperature;
  const bool is_sample = teacher.tail == Tail::kSampled || teacher.tail == Tail::kPacked;
  int64_t num_kept = 0;
  double log_outside = -INFINITY;

  void finish_tail() {
    double mass = 0.0;
    for (const Kept& k : *this) mass += ::exp(k.target);
    mass = mass > 1.0 ? 1.0 : mass;
    const bool has_rest = teacher.tail == Tail::kBucket || teacher.tail == Tail::kUniform;
    log_outside = has_rest ? ::log1p(-mass) : -INFINITY;
    if (teacher.tail != Tail::kRenormalize) return;
    const double log_mass = ::log(mass);
    for (Kept& k : *this) k.target -= log_mass;
  }

  void read_some(int64_t n, int64_t begin, int size, const Blocks& blocks) {
    alignas(64) float values[kBlock];
    if (teacher.values.data) {
      load_block(teacher.values.dtype, teacher.values.row(n), begin, size, Transform{}, 0.0f,
                 values);
    }
    for (int k = 0; k < size; ++k) {
      const SparseEntry entry = teacher.entry(n, begin + k);
      if (entry.column < 0) continue;
      Kept& added = kept[num_kept];
      Head& head = heads[blocks.index(entry.column)];
      added.column = entry.column;
      added.target = teacher.tail == Tail::kPacked ? double(entry.count) / teacher.num_draws
                     : is_sample                   ? values[k]
                                                   : log_p(values[k], teacher.log_z(n));
      added.next = head.first;
      head.first = static_cast<int32_t>(num_kept++);
    }
  }

  double log_p(double logit, double log_z) const {
    const double scaled = logit * scale;
    const bool is_capped = cap != 0.0 && scaled != -INFINITY;
    return (is_capped ? cap * ::tanh(scaled / cap) : scaled) / temperature - log_z;
  }
};

}  // namespace mkd::MKD_ISA
