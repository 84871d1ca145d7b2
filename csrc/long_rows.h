// Forward KL of rows that are too long for short_rows.h: every logit is read once, and its two
// exponentials are taken once.
//
// A block's exponentials refer to the largest logits found before it (within the first block, to
// its own). Only where a block goes above those by too much is it taken again, with the larger
// reference: nobody has to look for the maximum first. Most blocks stay near their reference, and
// are taken as near_runs.h does; after the first that is not, the row's are no longer tried.
//
// Exponentials stay in a scratch row, 8 bytes a column, which a second-level cache holds at V =
// 32,000 and a third-level one above, with the references of their block; the gradient is made of
// them, block by block, backwards, and goes from registers to memory. That is done while the next
// row is collected, a block of the one for a block of the other, and pair by pair in the same loop
// where both blocks are whole and near: so reading, arithmetic and writing go on at the same time,
// and exponentials are put where those of the row before have just been used. What comes from
// memory next is fetched while arithmetic is going on, a line for each line that is used.
//
// Rows with logits so large that c (see long_runs.h) is out of reach, and those with NaN, are left
// to the sweeps that serve every divergence.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "dense_kd_rows.h"
#include "long_exponents.h"
#include "long_gradients.h"
#include "near_runs.h"

namespace mkd::MKD_ISA {

// Columns whose exponentials refer to the same logits.
constexpr int kLongBlock = 1024;

// The blocks of a row's columns [first, last): the first one ends where the gradient is aligned.
struct LongBlocks {
  int64_t first, last, head;

  int64_t count() const { return (head > 0) + (last - first - head + kLongBlock - 1) / kLongBlock; }
  int64_t begin(int64_t b) const {
    return first + (b == 0 ? 0 : head + (b - (head > 0)) * kLongBlock);
  }
  int size(int64_t b) const { return static_cast<int>(std::min(begin(b + 1), last) - begin(b)); }
};

// Columns [first, last) of rows, whose exponentials are kept in `storage`.
template <Label kLabel>
class LongRows {
 public:
  const LongExponents<kLabel> exponents;

  LongRows(const KD& op, int64_t first, int64_t last, std::vector<float>& storage)
      : exponents(op),
        op(op),
        sweeps(op),
        first(first),
        last(last),
        num_slots((last - first) / kLongBlock + 2) {  // the first and last block may be short
    references.resize(num_slots);
    const int64_t size = num_slots * kLongBlock + kApart;
    storage.resize(kArrays * size + kAlignment);
    const auto address = reinterpret_cast<uintptr_t>(storage.data());
    e_s = storage.data() + (-address % (kAlignment * sizeof(float))) / sizeof(float);
    e_t = e_s + size;
    e_own = e_t + size;
  }

  // The terms of those rows of a task that count, and their gradient but for the last one's.
  void run(const Task& task) {
    for (int64_t n = task.begin; n < task.end; ++n) {
      if (!op.counts(n)) continue;
      const RowSums all_sums = collect(n);
      if (!exponents.are_good(all_sums)) {
        run_together<D>(op, task, &n, 1);
        continue;
      }
      RowFactors factors;
      task.terms_of(n) = finish(n, all_sums, factors);
      if (op.grad.data) keep(all_sums, factors);
    }
  }

  // First sweep: the sums, and the exponentials for the last one. They refer to stored logits. What
  // is left to write of the row before is written on the way.
  RowSums collect(int64_t n) {
    const int64_t element = op.grad.element_size();
    const int64_t head =
        !op.stream_grad
            ? 0
            : std::min(last - first,
                       columns_to_alignment(op.grad.row(n) + first * element, element, kPair));
    row = {n, {first, last, head}, !before.is_reversed};
    block_sums = {};
    may_be_near = kFmaRoundsOnce;
    with_types([&](auto s, auto t) { collect_of<decltype(s), decltype(t)>(); });
    write_rest();
    return row.sums;
  }

  // The row's terms, and the factors of its gradient, from the sums of all its columns.
  Terms finish(int64_t n, const RowSums& all_sums, RowFactors& factors) const {
    factors.inverse_z_s = static_cast<float>(1.0 / all_sums.z_s);
    factors.inverse_z_t = static_cast<float>(1.0 / all_sums.z_t);
    factors.weight = sweeps.kd_weight;
    Terms terms;
    terms.kd = op.kd_scale * D::value(all_sums, factors);
    if (kLabel != Label::kNone) {
      terms.ce = kLn2 * (::log2(all_sums.z_ce) -
                         exponents.own_of(sweeps.label_logit(n, {}), all_sums.max_s));
    }
    return terms;
  }

  // The last sweep is to make the gradient of the row that was collected last, and of these.
  void keep(const RowSums& all_sums, const RowFactors& factors) {
    before = row;
    before.sums = all_sums;
    before.num_left = row.blocks.count();
    before.factors = {factors.weight * factors.inverse_z_s, factors.weight * factors.inverse_z_t,
                      static_cast<float>(sweeps.label_weight / all_sums.z_ce)};
    if (last == op.num_columns) clear_padding(op, op.grad.row(row.n));
  }

  void write_rest() {
    while (before.num_left > 0) (this->*write_next)();
  }

 private:
  using D = KL<true, false>;
  using Writer = void (LongRows::*)();
  static constexpr int kArrays = kLabel == Label::kOwn ? 3 : 2;
  static constexpr size_t kAlignment = 16;  // floats
  // More floats than there are in one kept array: arrays whole pages apart share the lines of a
  // cache, and at V = 250,002 that took a third longer.
  static constexpr int64_t kApart = 17 * kAlignment;
  struct OfRow {
    int64_t n = 0;
    LongBlocks blocks = {};
    bool is_reversed = false;  // the order of its blocks in the scratch row
    RowSums sums = {};
    GradientFactors factors = {};
    int64_t num_left = 0;  // blocks whose gradient is to be written, the last one first
  };

  const KD& op;
  const Sweeps<D> sweeps;
  const int64_t first, last, num_slots;
  OfRow row, before;
  std::vector<Reference> references;  // of each slot
  float *e_s, *e_t, *e_own;
  // Of the row that is collected: what its reference logits make, the sums that refer to them, and
  // whether all blocks have been near so far.
  NearRuns<kLabel> near_runs{exponents.s, exponents.t, exponents.own};
  Reference reference;
  Vec operand_s, operand_t, operand_own;
  BlockSums<kLabel> block_sums;
  bool may_be_near;
  const Writer write_next = writer();

  // act(a number of the student's type, one of the teacher's).
  template <class Act>
  void with_types(Act act) const {
    with_type(op.student.dtype,
              [&](auto s) { with_type(op.teacher.dtype, [&](auto t) { act(s, t); }); });
  }

  // Where a block's exponentials lie. Rows take turns in their direction: the last block of one is
  // the first whose gradient is written, and leaves its place to the first one of the next row.
  int64_t slot_of(const OfRow& of, int64_t b) const {
    return of.is_reversed ? num_slots - 1 - b : b;
  }

  Exponentials kept_in(int64_t slot) const {
    const int64_t at = slot * kLongBlock;
    return {e_s + at, e_t + at, e_own + at};
  }

  // Writes what the row before still has in a slot, and in those that this row has taken already.
  void clear(int64_t slot) {
    while (before.num_left > 0) {
      const int64_t next = slot_of(before, before.num_left - 1);
      if (row.is_reversed ? next < slot : next > slot) return;
      (this->*write_next)();
    }
  }

  // All that comes refers to the largest logits so far.
  void refer(float most_s, float most_t) {
    block_sums.add_to(row.sums);
    block_sums = {};
    exponents.raise(row.sums, most_s, most_t);
    reference = {reference_of(row.sums.max_s), reference_of(row.sums.max_t)};
    near_runs.refer_to(reference.s, reference.t);
    operand_s = exponents.s.operand_of(reference.s);
    operand_t = exponents.t.operand_of(reference.t);
    operand_own = exponents.own.operand_of(reference.s);
  }

  template <class S, class T>
  void collect_of() {
    const S* const s = reinterpret_cast<const S*>(op.student.row(row.n));
    const T* const t = reinterpret_cast<const T*>(op.teacher.row(row.n));
    const int size = row.blocks.size(0);
    fetch_pages(s + first, last - first);
    fetch_pages(t + first, last - first);
    refer(largest_of(s + first, size), largest_of(t + first, size));
    for (int64_t b = 0; b < row.blocks.count(); ++b) {
      const int64_t slot = slot_of(row, b), begin = row.blocks.begin(b);
      while (!add_block(s + begin, t + begin, row.blocks.size(b), slot)) {
      }
    }
    block_sums.add_to(row.sums);
  }

  // Adds a block to the sums, unless it rises too far above the reference, which is then raised.
  template <class S, class T>
  bool add_block(const S* s, const T* t, int size, int64_t slot) {
    BlockSums<kLabel> sums = block_sums;
    bool is_near = may_be_near && row.sums.max_s != kNothing && row.sums.max_t != kNothing;
    if constexpr (kFmaRoundsOnce) is_near = is_near && add_near(s, t, size, slot, sums);
    if (!is_near) {
      clear(slot);
      sums = block_sums;
    }
    references[slot] = reference;
    const int64_t at = slot * kLongBlock;
    Vec most_s = all(kNothing), most_t = most_s;
    for (int i = is_near ? size / kPair * kPair : 0; i < size; i += kRun) {
      add_run(s + i, t + i, std::min(kRun, size - i), at + i, sums, most_s, most_t);
    }
    const float highest_s = std::max(largest(most_s), row.sums.max_s);
    const float highest_t = std::max(largest(most_t), row.sums.max_t);
    if (exponents.rise_too_far(row.sums, highest_s, highest_t)) {
      refer(highest_s, highest_t);
      return false;
    }
    block_sums = sums;
    may_be_near = is_near;
    return true;
  }

  // The same of whole pairs, if all of them are near. What the slot still holds is written on the
  // way, where a whole block takes the place of a whole one.
  template <class S, class T>
  bool add_near(const S* s, const T* t, int size, int64_t slot, BlockSums<kLabel>& sums) {
    const Exponentials kept = kept_in(slot);
    if constexpr (std::is_same_v<S, T>) {
      const bool is_whole = size == kLongBlock && before.num_left > 0 &&
                            slot_of(before, before.num_left - 1) == slot &&
                            before.blocks.size(before.num_left - 1) == kLongBlock;
      if (is_whole && op.kd_weight != 0.0) {
        using Order = OrderOf<S, T>;
        return sweeps.label_weight == 0.0
                   ? near_runs.add(s, t, size, kept, sums, next<S, Order, true, Label::kNone>())
                   : near_runs.add(s, t, size, kept, sums, next<S, Order, true, kLabel>());
      }
    }
    clear(slot);
    return near_runs.add(s, t, size, kept, sums, [](int) {});
  }

  template <class X>
  static float largest_of(const X* from, int size) {
    Vec most = all(kNothing);
    int i = 0;
    for (; i + Vec::kLanes <= size; i += Vec::kLanes) most = max(load(from + i), most);
    if (i < size) most = max(where(first_lanes(size - i), load(from + i, size - i), most), most);
    return largest(most);
  }

  template <class S, class T>
  void add_run(const S* s, const T* t, int count, int64_t at, BlockSums<kLabel>& to, Vec& most_s,
               Vec& most_t) const {
    constexpr OrderOf<S, T> order;
    Run<kLabel> run{exponents.s,
                    exponents.t,
                    exponents.own,
                    operand_s,
                    operand_t,
                    operand_own,
                    {e_s + at, e_t + at, e_own + at},
                    most_s,
                    most_t};
    int i = 0;
    for (; i + kPair <= count; i += kPair) {
      fetch_pair(s + i);
      fetch_pair(t + i);
      run.add(i, load_pair(order, s + i), load_pair(order, t + i));
    }
    if (i < count) {
      const Vec nothing = all(kNothing);
      run.add(i, load_pair(order, s + i, count - i, nothing),
              load_pair(order, t + i, count - i, nothing));
    }
    most_s = run.most_s;
    most_t = run.most_t;
    run.add_to(to);
  }

  // The factors of exponentials in a slot.
  template <Label kUsed>
  GradientFactors factors_of(int64_t slot) const {
    const Reference from = references[slot];
    const float rest_s = rest_of(exponents.s, from.s, before.sums.max_s);
    GradientFactors factors = before.factors;
    factors.s *= rest_s;
    factors.t *= rest_of(exponents.t, from.t, before.sums.max_t);
    factors.ce *= kUsed == Label::kOwn ? rest_of(exponents.own, from.s, before.sums.max_s) : rest_s;
    if constexpr (kUsed == Label::kSquare) factors.ce *= rest_s;
    return factors;
  }

  Writer writer() const {
    Writer result = nullptr;
    const bool without_kd = op.kd_weight == 0.0, without_label = sweeps.label_weight == 0.0;
    with_types([&](auto s, auto t) {
      using S = decltype(s);
      using Order = OrderOf<S, decltype(t)>;
      if (without_kd && without_label) {
        result = &LongRows::template write_block<S, Order, false, Label::kNone>;
      } else if (without_kd) {
        result = &LongRows::template write_block<S, Order, false, kLabel>;
      } else if (without_label) {
        result = &LongRows::template write_block<S, Order, true, Label::kNone>;
      } else {
        result = &LongRows::template write_block<S, Order, true, kLabel>;
      }
    });
    return result;
  }

  // The gradient of the next block of the row before, which from then on counts as written.
  template <class X, class Order, bool kHasKD, Label kUsed>
  BlockGradient<X, Order, kHasKD, kUsed> next() {
    const int64_t b = --before.num_left, begin = before.blocks.begin(b);
    const int64_t slot = slot_of(before, b);
    X* const grad = reinterpret_cast<X*>(op.grad.row(before.n)) + begin;
    return {.kept = kept_in(slot),
            .factors = factors_of<kUsed>(slot),
            .label_weight = static_cast<float>(sweeps.label_weight),
            .label = kUsed == Label::kNone ? -1 : op.labels(before.n) - begin,
            .grad = grad,
            .past_caches =
                op.stream_grad && reinterpret_cast<uintptr_t>(grad) % (kPair * sizeof(X)) == 0};
  }

  template <class X, class Order, bool kHasKD, Label kUsed>
  void write_block() {
    const int size = before.blocks.size(before.num_left - 1);
    next<X, Order, kHasKD, kUsed>().write(size);
  }
};

// act(what runs the tasks of a thread)
template <class Act>
inline void with_long_rows(const KD& op, Act act) {
  with_known(label_of(op), [&](auto label) {
    static thread_local std::vector<float> storage;
    LongRows<label.value> rows(op, 0, op.num_columns, storage);
    act(rows);
  });
}

// The same for one row, in parts that different threads take.
inline Terms split_long_row(const KD& op, int64_t n, int num_parts, const Parallel& parallel) {
  Terms terms;
  with_known(label_of(op), [&](auto label) {
    using Part = LongRows<label.value>;
    std::vector<std::vector<float>> storages(num_parts);
    std::vector<Part> parts;
    std::vector<RowSums> sums(num_parts);
    for (int i = 0; i < num_parts; ++i) {
      parts.emplace_back(op, begin_of_part(op, i, num_parts), begin_of_part(op, i + 1, num_parts),
                         storages[i]);
    }
    parallel(num_parts, [&](int i) { sums[i] = parts[i].collect(n); });
    for (int i = 1; i < num_parts; ++i) parts[0].exponents.join(sums[0], sums[i]);
    if (!parts[0].exponents.are_good(sums[0])) {
      terms = split_logits_row<KL<true, false>>(op, n, num_parts, parallel);
      return;
    }
    RowFactors factors;
    terms = parts[0].finish(n, sums[0], factors);
    if (!op.grad.data) return;
    parallel(num_parts, [&](int i) {
      parts[i].keep(sums[0], factors);
      parts[i].write_rest();
      if (op.stream_grad) finish_streams();
    });
  });
  return terms;
}

}  // namespace mkd::MKD_ISA
