// Forward KL of rows that are too long for short_rows.h: every logit is read once, and its two
// exponentials are taken once.
//
// A block's exponentials refer to the largest logits found before it (within the first block, to
// its own). Only where a block goes above those by more than kMostRise is it taken again, with the
// larger reference: nobody has to look for the maximum first. They stay in a scratch row, 8 bytes a
// column, which a second-level cache holds at V = 32,000 and a third-level one above, with the
// references of their block; the gradient is made of them, block by block, backwards, and goes from
// registers to memory. What comes from memory next is fetched while arithmetic is going on, a line
// for each line that is used.
//
// Rows with logits so large that c (see long_runs.h) is too rough, and those with NaN, are left to
// the sweeps that serve every divergence.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "dense_kd_rows.h"
#include "long_runs.h"

namespace mkd::MKD_ISA {

// Columns whose exponentials refer to the same logits: what there is to do once a block, reductions
// across registers above all, costs 4 % where blocks have 1,024.
constexpr int kLongBlock = 2048;

// Columns [first, last) of rows, whose exponentials are kept in `storage`.
template <Label kLabel>
class LongRows {
 public:
  LongRows(const KD& op, int64_t first, int64_t last, std::vector<float>& storage)
      : op(op), sweeps(op), first(first), last(last) {
    const int64_t most_blocks = (last - first) / kLongBlock + 2;  // the first and last may be short
    references.resize(most_blocks);
    const int64_t size = most_blocks * kLongBlock + kApart;
    storage.resize(kArrays * size + kAlignment);
    const auto address = reinterpret_cast<uintptr_t>(storage.data());
    e_s = storage.data() + (-address % (kAlignment * sizeof(float))) / sizeof(float);
    e_t = e_s + size;
    e_own = e_t + size;
  }

  // First sweep: the sums, and the exponentials for the last one. They refer to stored logits.
  RowSums collect(int64_t n) {
    const int64_t element = op.grad.element_size();
    head = !op.stream_grad
               ? 0
               : std::min(last - first,
                          columns_to_alignment(op.grad.row(n) + first * element, element, kPair));
    sums = {};
    with_types([&](auto s, auto t) { collect_of<decltype(s), decltype(t)>(n); });
    return sums;
  }

  // Whether the rest can be made of these sums.
  bool are_good(const RowSums& all_sums) const {
    const float largest_s = Sweeps<D>::reference(all_sums.max_s);
    const float largest_t = Sweeps<D>::reference(all_sums.max_t);
    return is_near(exponent_s, largest_s) && is_near(exponent_own, largest_s) &&
           is_near(exponent_t, largest_t) && !std::isnan(all_sums.z_s + all_sums.z_t);
  }

  // Adds the sums of other columns of the same row.
  void join(RowSums& to, RowSums others) const {
    raise(to, others.max_s, others.max_t);
    raise(others, to.max_s, to.max_t);
    to.add(others);
  }

  // The row's terms, and the factors of its gradient, from the sums of all its columns.
  Terms finish(int64_t n, const RowSums& all_sums, RowFactors& factors) const {
    factors.inverse_z_s = static_cast<float>(1.0 / all_sums.z_s);
    factors.inverse_z_t = static_cast<float>(1.0 / all_sums.z_t);
    factors.weight = sweeps.kd_weight;
    Terms terms;
    terms.kd = op.kd_scale * D::value(all_sums, factors);
    if (kLabel != Label::kNone) {
      const double c = exponent_own.c_of(Sweeps<D>::reference(all_sums.max_s));
      const double label_exponent = double(sweeps.label_logit(n, {})) * exponent_own.rate - c;
      terms.ce = kLn2 * (::log2(all_sums.z_ce) - label_exponent);
    }
    return terms;
  }

  // Last sweep, over what the first one has kept.
  void write_gradient(int64_t n, const RowSums& all_sums, const RowFactors& factors) {
    sums = all_sums;
    const bool without_kd = op.kd_weight == 0.0, without_label = sweeps.label_weight == 0.0;
    with_types([&](auto s, auto t) {
      using S = decltype(s);
      using Order = OrderOf<S, decltype(t)>;
      if (without_kd && without_label) {
        write_gradient<S, Order, false, Label::kNone>(n, factors);
      } else if (without_kd) {
        write_gradient<S, Order, false, kLabel>(n, factors);
      } else if (without_label) {
        write_gradient<S, Order, true, Label::kNone>(n, factors);
      } else {
        write_gradient<S, Order, true, kLabel>(n, factors);
      }
    });
    if (last == op.num_columns) clear_padding(op, op.grad.row(n));
  }

 private:
  using D = KL<true, false>;
  static constexpr int kArrays = kLabel == Label::kOwn ? 3 : 2;
  static constexpr size_t kAlignment = 16;  // floats
  // More floats than there are in one kept array: arrays whole pages apart share the lines of a
  // cache, and at V = 250,002 that took a third longer.
  static constexpr int64_t kApart = 17 * kAlignment;
  // In powers of two, and within the error budget: the error of an exponential grows with t.
  static constexpr double kMostRise = 3.0;
  // Of c, whose rounding leaves the largest exponent within 1/16 of 0.
  static constexpr double kFarthest = 0x1p20;
  // Registers that are added up in float: half as many where more of them make a row.
  static constexpr int kRun = (Vec::kLanes < 16 ? 16 : 32) * Vec::kLanes;

  struct Reference {
    float s, t;
  };

  const KD& op;
  const Sweeps<D> sweeps;
  const Exponent exponent_s{static_cast<float>(op.logit_scale * kLog2E / op.temperature)};
  const Exponent exponent_t{
      static_cast<float>(op.teacher_logit_scale * kLog2E / op.teacher_temperature)};
  const Exponent exponent_own{static_cast<float>(op.logit_scale * kLog2E)};  // of cross-entropy
  const int64_t first, last;
  RowSums sums;
  int64_t head;                       // columns before the first aligned one of the gradient
  std::vector<Reference> references;  // of each block
  float *e_s, *e_t, *e_own;

  static bool is_near(const Exponent& exponent, float reference) {
    return std::abs(exponent.c_of(reference)) <= kFarthest;
  }

  // How far the exponents of what refers to `from` are above those of what refers to `to`.
  static double fall(const Exponent& exponent, float from, float to) {
    return exponent.c_of(Sweeps<D>::reference(to)) - exponent.c_of(Sweeps<D>::reference(from));
  }

  // Of the largest exponent; what there is after nothing may be anywhere.
  static double rise_of(const Exponent& exponent, float from, float to) {
    return to == from ? 0.0 : from == kNothing ? double(INFINITY) : fall(exponent, from, to);
  }

  // Refer the sums to the largest logits so far.
  void raise(RowSums& raised, float most_s, float most_t) const {
    most_s = std::max(most_s, raised.max_s);
    most_t = std::max(most_t, raised.max_t);
    const double fall_s = fall(exponent_s, raised.max_s, most_s);
    const double fall_t = fall(exponent_t, raised.max_t, most_t);
    raised.cross_t = ::exp2(-fall_t) * (raised.cross_t + raised.z_t * (fall_s - fall_t));
    raised.z_s *= ::exp2(-fall_s);
    raised.z_t *= ::exp2(-fall_t);
    raised.z_ce *= ::exp2(-fall(exponent_own, raised.max_s, most_s));
    raised.max_s = most_s;
    raised.max_t = most_t;
  }

  // act(a number of the student's type, one of the teacher's).
  template <class Act>
  void with_types(Act act) const {
    with_type(op.student.dtype,
              [&](auto s) { with_type(op.teacher.dtype, [&](auto t) { act(s, t); }); });
  }

  // Block b begins at a column, and its exponentials lie at b * kLongBlock.
  int64_t num_blocks() const {
    return (head > 0) + (last - first - head + kLongBlock - 1) / kLongBlock;
  }
  int64_t begin_of(int64_t b) const {
    return first + (b == 0 ? 0 : head + (b - (head > 0)) * kLongBlock);
  }
  int size_of(int64_t b) const {
    return static_cast<int>(std::min(begin_of(b + 1), last) - begin_of(b));
  }

  template <class S, class T>
  void collect_of(int64_t n) {
    const S* const s = reinterpret_cast<const S*>(op.student.row(n));
    const T* const t = reinterpret_cast<const T*>(op.teacher.row(n));
    raise(sums, largest_of(s + first, size_of(0)), largest_of(t + first, size_of(0)));
    for (int64_t b = 0; b < num_blocks(); ++b) collect_block(s + begin_of(b), t + begin_of(b), b);
  }

  template <class S, class T>
  void collect_block(const S* s, const T* t, int64_t b) {
    const int size = size_of(b);
    for (;;) {
      const Reference reference =
          references[b] = {Sweeps<D>::reference(sums.max_s), Sweeps<D>::reference(sums.max_t)};
      BlockSums<kLabel> block;
      for (int i = 0; i < size; i += kRun) {
        add_run(s + i, t + i, std::min(kRun, size - i), b * kLongBlock + i, reference, block);
      }
      const float most_s = std::max(largest(block.most_s), sums.max_s);
      const float most_t = std::max(largest(block.most_t), sums.max_t);
      const Exponent& steepest =
          kLabel == Label::kOwn && op.temperature > 1.0 ? exponent_own : exponent_s;
      if (rise_of(steepest, sums.max_s, most_s) <= kMostRise &&
          rise_of(exponent_t, sums.max_t, most_t) <= kMostRise) {
        return block.add_to(sums);
      }
      raise(sums, most_s, most_t);
    }
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
  void add_run(const S* s, const T* t, int count, int64_t at, Reference reference,
               BlockSums<kLabel>& block) const {
    constexpr OrderOf<S, T> order;
    Run<kLabel> run{exponent_s,
                    exponent_t,
                    exponent_own,
                    exponent_s.operand_of(reference.s),
                    exponent_t.operand_of(reference.t),
                    exponent_own.operand_of(reference.s),
                    e_s + at,
                    e_t + at,
                    e_own + at,
                    block.most_s,
                    block.most_t};
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
    block.most_s = run.most_s;
    block.most_t = run.most_t;
    block.z_s.add(run.z_s);
    block.z_t.add(run.z_t);
    if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) block.z_ce.add(run.z_ce);
    block.cross.add(run.cross);
  }

  // What the kept exponentials of a block are multiplied by for the kd gradient, and those of the
  // cross-entropy for its own; the label's place, if it is in the block.
  struct BlockFactors {
    float s, t, ce;
    int64_t label;
  };

  // What is left of a block's exponentials where its reference is below the row's. It is above
  // where the block has nothing but zeros.
  static float rest_of(const Exponent& exponent, float from, float to) {
    return static_cast<float>(::exp2(-std::max(0.0, fall(exponent, from, to))));
  }

  // kHasKD and kUsed leave out what has no weight.
  template <class X, class Order, bool kHasKD, Label kUsed>
  void write_gradient(int64_t n, const RowFactors& row) {
    X* const grad = reinterpret_cast<X*>(op.grad.row(n));
    const int64_t column = kUsed == Label::kNone ? -1 : op.labels(n);
    for (int64_t b = num_blocks() - 1; b >= 0; --b) {
      const Reference from = references[b];
      const float rest_s = rest_of(exponent_s, from.s, sums.max_s);
      const float rest_t = rest_of(exponent_t, from.t, sums.max_t);
      float ce = static_cast<float>(sweeps.label_weight / sums.z_ce);
      ce *= kUsed == Label::kOwn ? rest_of(exponent_own, from.s, sums.max_s) : rest_s;
      if constexpr (kUsed == Label::kSquare) ce *= rest_s;
      write_block<Order, kHasKD, kUsed>(
          b, grad + begin_of(b),
          {row.weight * row.inverse_z_s * rest_s, row.weight * row.inverse_z_t * rest_t, ce,
           column - begin_of(b)});
    }
  }

  template <class Order, bool kHasKD, Label kUsed, class X>
  void write_block(int64_t b, X* grad, const BlockFactors& factors) const {
    const int64_t at = b * kLongBlock;
    const auto gradient = [&](int i) {
      Pair pair{gradient_register<kHasKD, kUsed>(at + i, factors),
                gradient_register<kHasKD, kUsed>(at + i + Vec::kLanes, factors)};
      if (i <= factors.label && factors.label < i + kPair) [[unlikely]] {
        take_off_label(pair, Order::lane_of(static_cast<int>(factors.label) - i));
      }
      return pair;
    };
    const bool past_caches =
        op.stream_grad && reinterpret_cast<uintptr_t>(grad) % (kPair * sizeof(X)) == 0;
    const int size = size_of(b);
    int i = 0;
    for (; i + kPair <= size; i += kPair) {
      store_pair(Order{}, grad + i, gradient(i), past_caches);
    }
    if (i < size) store_pair(Order{}, grad + i, gradient(i), size - i);
  }

  // The kd part is exactly 0 where p and q are equal.
  template <bool kHasKD, Label kUsed>
  [[gnu::always_inline]] Vec gradient_register(int64_t at, const BlockFactors& factors) const {
    const Vec x_s = load(e_s + at), x_t = load(e_t + at), ce = all(factors.ce);
    Vec result = all(0.0f);
    if constexpr (kHasKD) result = x_s * all(factors.s) - x_t * all(factors.t);
    if constexpr (kUsed == Label::kSame) return fma(x_s, ce, result);
    if constexpr (kUsed == Label::kSquare) return fma(x_s * ce, x_s, result);
    if constexpr (kUsed == Label::kOwn) return fma(load(e_own + at), ce, result);
    return result;
  }

  void take_off_label(Pair& pair, int lane) const {
    float lanes[kPair];
    store(lanes, pair.a);
    store(lanes + Vec::kLanes, pair.b);
    lanes[lane] -= static_cast<float>(sweeps.label_weight);
    pair = {load(lanes), load(lanes + Vec::kLanes)};
  }
};

// terms[n - begin] and the gradient of those rows n in [begin, end) that count.
inline void long_rows(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  with_known(label_of(op), [&](auto label) {
    static thread_local std::vector<float> storage;
    LongRows<label.value> rows(op, 0, op.num_columns, storage);
    for (int64_t n = begin; n < end; ++n) {
      if (!op.counts(n)) continue;
      const RowSums sums = rows.collect(n);
      if (!rows.are_good(sums)) {
        run_together<KL<true, false>>(op, begin, &n, 1, terms);
        continue;
      }
      RowFactors factors;
      terms[n - begin] = rows.finish(n, sums, factors);
      if (op.grad.data) rows.write_gradient(n, sums, factors);
    }
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
    for (int i = 1; i < num_parts; ++i) parts[0].join(sums[0], sums[i]);
    if (!parts[0].are_good(sums[0])) {
      terms = split_logits_row<KL<true, false>>(op, n, num_parts, parallel);
      return;
    }
    RowFactors factors;
    terms = parts[0].finish(n, sums[0], factors);
    if (!op.grad.data) return;
    parallel(num_parts, [&](int i) {
      parts[i].write_gradient(n, sums[0], factors);
      if (op.stream_grad) finish_streams();
    });
  });
  return terms;
}

}  // namespace mkd::MKD_ISA
