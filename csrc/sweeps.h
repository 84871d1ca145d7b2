// The sweeps over a row of logits, whatever the divergence: what each does to a range of columns.
// dense_kd.cpp explains them.
#pragma once

#include <algorithm>

#include "block.h"
#include "divergences.h"
#include "labels.h"
#include "stored.h"

namespace mkd::MKD_ISA {

// One row on its way. s and t point to a block of scaled logits, student's and teacher's; the last
// sweep leaves the gradient in s. A row of one block may hold e_s and e_t there instead, so that
// they are not computed again.
struct Row {
  int64_t n;
  float *s, *t;
  bool holds_exponentials;
  RowSums sums;
  RowFactors factors;
  Stored stored;
};

// Raises `most` to `candidate`; returns by how much, 0 where there was nothing before.
inline double rise(float& most, float candidate) {
  if (!(candidate > most)) return 0.0;
  const double before = most;
  most = candidate;
  return before == kNothing ? 0.0 : candidate - before;
}

// What is subtracted from logits where they have no rate, and what exponents refer to: their
// maximum, unless there is nothing above -inf.
inline float reference_of(float most) { return most == kNothing ? 0.0f : most; }

template <class D>
class Sweeps {
 public:
  explicit Sweeps(const KD& op) : op(op), divergence(op) {}

  const KD& op;
  const D divergence;
  const double rate_s = kLog2E / op.temperature, rate_t = kLog2E / op.teacher_temperature;
  const float kd_weight = static_cast<float>(op.row_weight * op.kd_weight * op.kd_scale *
                                             op.logit_scale / op.temperature);
  const double label_weight = op.row_weight * op.ce_weight * op.logit_scale;
  const Transform transform_s{static_cast<float>(op.logit_scale), static_cast<float>(op.softcap)};
  const Transform transform_t{static_cast<float>(op.teacher_logit_scale),
                              static_cast<float>(op.teacher_softcap)};
  const Label label = op.labels && D::kOfLogits ? Label::kOwn : label_of(op);

  // First sweep: sums over columns [begin, end), block by block.
  void collect(Row& row, int64_t begin, int64_t end) const {
    row.holds_exponentials = !D::kOfLogits && D::kNumKept == 0 && label != Label::kOwn &&
                             op.softcap == 0.0 && op.num_columns <= kBlock;
    each_block(begin, end, [&](int64_t first, int size) {
      float most_s, most_t;
      load_both(row, first, size, &most_s, &most_t);
      raise(row.sums, most_s, most_t);
      with_known(label, [&](auto known) { add_to_sums<known.value>(row, first, size); });
      if constexpr (D::kOfLogits) add_values_of_block<false>(row, first, size);
    });
  }

  // Between the sweeps: the factors that follow from the sums of all columns.
  void normalise(Row& row) const {
    RowFactors& f = row.factors;
    f.inverse_z_s = static_cast<float>(1.0 / row.sums.z_s);
    f.inverse_z_t = static_cast<float>(1.0 / row.sums.z_t);
    f.weight = kd_weight;
    if constexpr (D::kNeedsValueSweep) {
      f.weight *= unit_of(divergence);
      f.normalise(row.sums.z_s, row.sums.z_t);
    }
  }

  // Second sweep, for those divergences whose value needs normalised probabilities.
  void add_values(Row& row, int64_t begin, int64_t end) const {
    each_block(begin, end, [&](int64_t first, int size) {
      reload(row, first, size);
      if (row.stored) return add_values_of_block<true>(row, first, size);
      add_values_of_block<false>(row, first, size);
    });
  }

  // The row's terms, and the last factors of its gradient.
  Terms finish(Row& row) const {
    const RowSums& sums = row.sums;
    RowFactors& f = row.factors;
    Terms terms;
    if constexpr (D::kNeedsValueSweep) {
      // What is not a positive probability may have been passed over: here it is not.
      terms.kd = sums.value * unit_of(divergence) + sums.broken();
      f.pulls = TwoFloats(sums.pull / sums.q + sums.broken());
    } else {
      terms.kd = D::value(sums, f);
    }
    terms.kd *= op.kd_scale;
    if (label != Label::kNone) {
      terms.ce = ::log(sums.z_ce) - (double(label_logit(row.n, transform_s)) - sums.max_s);
    }
    return terms;
  }

  // Last sweep: the gradient, block by block, backwards, since the end of the row is in the cache.
  // Blocks begin where the gradient is aligned if it is to be written past the caches.
  void write_gradient(Row& row, int64_t begin, int64_t end) const {
    const Label used = label_weight == 0.0 ? Label::kNone : label;
    const float ce_weight = ce_factor(used, row.sums);
    const int64_t column = used == Label::kNone ? -1 : op.labels(row.n);
    char* grad = op.grad.row(row.n);
    const int64_t element = op.grad.element_size();
    const int64_t head = op.stream_grad ? columns_to_alignment(grad + begin * element, element) : 0;
    const int64_t aligned = begin + head;
    for (int64_t first, last = end; last > begin; last = first) {
      first = last > aligned ? aligned + (last - aligned - 1) / kBlock * kBlock : begin;
      const int size = static_cast<int>(last - first);
      if (D::kNumKept == 0 || used == Label::kOwn || op.softcap != 0.0) reload(row, first, size);
      alignas(64) float slopes[kBlock];
      if (op.softcap != 0.0) find_slopes(row.s, size, slopes);
      with_known(used, [&](auto known) {
        if constexpr (D::kNumKept > 0) {
          gradient_of_kept<known.value>(row, ce_weight, first, size);
        } else {
          gradient_block<known.value>(row, ce_weight, size);
        }
      });
      if (first <= column && column < last) {
        row.s[column - first] -= static_cast<float>(label_weight);
      }
      if (op.softcap != 0.0) multiply(row.s, size, slopes);
      store_block(op.grad.dtype, grad, first, size, row.s, op.stream_grad);
    }
  }

  // What the softmax of the cross-entropy, or q or its square in its place, is multiplied by.
  float ce_factor(Label used, const RowSums& sums) const {
    return static_cast<float>(used == Label::kSame ? label_weight
                              : used == Label::kSquare
                                  ? label_weight * sums.z_s * sums.z_s / sums.z_ce
                                  : label_weight / sums.z_ce);
  }

  // Adds the sums of other columns of the same row.
  void join(RowSums& sums, RowSums others) const {
    raise(sums, others.max_s, others.max_t);
    raise(others, sums.max_s, sums.max_t);
    sums.add(others);
  }

  // act(first, size) of each block of [begin, end).
  template <class Act>
  static void each_block(int64_t begin, int64_t end, Act act) {
    for (int64_t first = begin; first < end; first += kBlock) {
      act(first, static_cast<int>(end - first < kBlock ? end - first : kBlock));
    }
  }

  template <bool kKeeps>
  void add_values_of_block(Row& row, int64_t first, int size) const {
    constexpr int kRun = 8 * Vec::kLanes;
    Doubles values, pulls, qs;
    for (int i = 0; i < size; i += kRun) {
      Vec value = all(0.0f), pull = value, q = value;
      add_terms<kKeeps>(row, first, i, std::min(size - i, kRun), value, pull, q);
      values.add(value);
      pulls.add(pull);
      qs.add(q);
    }
    row.sums.value += values.sum();
    row.sums.pull += pulls.sum();
    row.sums.q += qs.sum();
  }

  // The terms of columns [begin, begin + size) of the block; none of what it is padded with.
  template <bool kKeeps>
  void add_terms(const Row& row, int64_t first, int begin, int size, Vec& values, Vec& pulls,
                 Vec& qs) const {
    const ExponentsOf student = exponents_s(row), teacher = exponents_t(row);
    [[maybe_unused]] float *const kept_q = row.stored.columns[0] + first,
                                  *const kept_pull = row.stored.columns[1] + first;
    const auto add = [&](int i, Mask real) {
      Vec value, pull, q = all(0.0f);
      divergence.terms(row.factors, log_of(student, load(row.s + i)),
                       log_of(teacher, load(row.t + i)), value, pull, q);
      if constexpr (kKeeps) {
        store(kept_q + i, q);
        store(kept_pull + i, pull);
      }
      values = values + where(real, value);
      pulls = pulls + where(real, pull);
      qs = qs + where(real, q);
    };
    int i = 0;
    for (; i + Vec::kLanes <= size; i += Vec::kLanes) add(begin + i, first_lanes(Vec::kLanes));
    if (i < size) add(begin + i, first_lanes(size - i));
  }

  using ExponentsOf = Exponents<D::kTakesPowers>;
  ExponentsOf exponents_s(const Row& row) const { return {rate_s, row.sums.max_s}; }
  ExponentsOf exponents_t(const Row& row) const { return {rate_t, row.sums.max_t}; }

  // What the divergence is given of a register of logits.
  static Log log_of(const ExponentsOf& exponents, Vec z) {
    if constexpr (D::kOfLogits) return {z, z};
    return exponents(z);
  }

  void load_both(Row& row, int64_t begin, int size, float* most_s, float* most_t) const {
    *most_s = load_block(op.student.dtype, op.student.row(row.n), begin, size, transform_s,
                         kNothing, row.s);
    *most_t = load_block(op.teacher.dtype, op.teacher.row(row.n), begin, size, transform_t,
                         kNothing, row.t);
  }

  // A row of one block is still where the first sweep left it.
  void reload(Row& row, int64_t begin, int size) const {
    float most_s, most_t;
    if (op.num_columns > kBlock) load_both(row, begin, size, &most_s, &most_t);
  }

  // Refer the sums to the largest logits so far.
  void raise(RowSums& sums, float most_s, float most_t) const {
    const double rise_s = rise(sums.max_s, most_s), rise_t = rise(sums.max_t, most_t);
    if (rise_s == 0.0 && rise_t == 0.0) return;
    const double fall_s = rise_s * rate_s, fall_t = rise_t * rate_t;
    const double factor_s = ::exp2(-fall_s), factor_t = ::exp2(-fall_t);
    sums.cross_t = factor_t * (sums.cross_t + sums.z_t * (fall_s - fall_t));
    sums.cross_s = factor_s * (sums.cross_s + sums.z_s * (fall_t - fall_s));
    sums.z_s *= factor_s;
    sums.z_t *= factor_t;
    sums.z_ce *= ::exp2(-rise_s * kLog2E);
  }

  // Runs are short enough for float: what they leave is added up in double.
  template <Label kLabel>
  void add_to_sums(Row& row, int64_t first, int size) const {
    // half as many where more of them make a row
    constexpr int kRun = (!D::kNeedsReverse ? 32 : Vec::kLanes < 16 ? 4 : 8) * Vec::kLanes;
    const ExponentsOf student = exponents_s(row), teacher = exponents_t(row);
    const WholeAndRest shift = common_ratio(student(load(row.s)), teacher(load(row.t)));
    if (row.stored) {
      row.stored.blocks[first / kBlock] = {row.sums.max_s, row.sums.max_t, shift.sum()};
    }
    for (int begin = 0; begin < size; begin += kRun) {
      const int end = std::min(begin + kRun, size);
      if (D::kNeedsReverse && row.stored) {
        add_run<kLabel, D::kNeedsReverse>(row, first, begin, end, student, teacher, shift);
      } else {
        add_run<kLabel, false>(row, first, begin, end, student, teacher, shift);
      }
    }
  }

  template <Label kLabel, bool kKeeps>
  void add_run(Row& row, int64_t first, int begin, int end, ExponentsOf student,
               ExponentsOf teacher, WholeAndRest shift) const {
    RowSums& sums = row.sums;
    [[maybe_unused]] const Vec reference_s = all(reference_of(sums.max_s));
    [[maybe_unused]] float* const kept[] = {row.stored.columns[0] + first,
                                            row.stored.columns[1] + first,
                                            row.stored.columns[2] + first};
    const Vec zero = all(0.0f);
    Vec z_s = zero, z_t = zero, z_ce = zero, cross_s = zero, cross_t = zero;
    for (int i = begin; i < end; i += Vec::kLanes) {
      const Vec z = load(row.s + i);
      if constexpr (kLabel == Label::kOwn) {
        z_ce = z_ce + exp2((z - reference_s) * all(float(kLog2E)));
      }
      if constexpr (D::kOfLogits) continue;
      const Log t_s = student(z), t_t = teacher(load(row.t + i));
      Vec e[2];
      Mask counts[2];
      exp2({t_s, t_t}, e, counts);
      if (row.holds_exponentials) {
        store(row.s + i, e[0]);
        store(row.t + i, e[1]);
      }
      z_s = z_s + e[0];
      z_t = z_t + e[1];
      if constexpr (kLabel == Label::kSquare) z_ce = fma(e[0], e[0], z_ce);
      // An event of probability 0 contributes 0, though its logarithm is infinite.
      const Vec d = joined((t_t - t_s) - shift);
      if constexpr (D::kNeedsForward) cross_t = fma(e[1], where(counts[1], d), cross_t);
      if constexpr (D::kNeedsReverse) cross_s = fma(e[0], where(counts[0], d), cross_s);
      if constexpr (kKeeps) {
        store(kept[0] + i, e[0]);
        store(kept[1] + i, where(counts[0], d));
        if constexpr (D::kNumKept > 2) store(kept[2] + i, e[1]);
      }
    }
    const double run_z_s = sum(z_s), run_z_t = sum(z_t);
    sums.z_s += run_z_s;
    sums.z_t += run_z_t;
    if constexpr (kLabel == Label::kSame) sums.z_ce = sums.z_s;
    if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) sums.z_ce += sum(z_ce);
    if constexpr (D::kNeedsForward) sums.cross_t += sum(cross_t) + shift.sum() * run_z_t;
    if constexpr (D::kNeedsReverse) sums.cross_s -= sum(cross_s) + shift.sum() * run_z_s;
  }

  // About what log2(e_t / e_s) is in the first columns of a block: where other columns are alike,
  // the cross sums round only what is left without it. A few bits, so that what is left is exact;
  // 0 where it is large, and columns that count may be far from it.
  static WholeAndRest common_ratio(Log t_s, Log t_t) {
    const Vec d = joined(t_t - t_s);
    const Mask counts = not_below(all(0x1p20f), max(d, all(0.0f) - d));
    const double mean = sum(where(counts, d)) / std::max(1.0, sum(where(counts, all(1.0f))));
    return WholeAndRest(std::abs(mean) <= 16.0 ? ::rint(mean * 64.0) / 64.0 : 0.0);
  }

  // Of a divergence that keeps nothing.
  template <Label kLabel>
  void gradient_block(const Row& row, float ce_weight, int size) const {
    const Vec reference_s = all(reference_of(row.sums.max_s));
    const ExponentsOf student = exponents_s(row), teacher = exponents_t(row);
    for (int i = 0; i < size; i += Vec::kLanes) {
      Vec z_s = load(row.s + i), q = all(0.0f), x[3] = {z_s, load(row.t + i)};
      if (!D::kOfLogits && !row.holds_exponentials) {
        Vec e[2];
        Mask counts[2];
        exp2({student(x[0]), teacher(x[1])}, e, counts);
        x[0] = e[0];
        x[1] = e[1];
      }
      const Vec grad = divergence.gradient(row.factors, x, q);
      store(row.s + i, with_label<kLabel>(grad, q, z_s - reference_s, ce_weight));
    }
  }

  // From what was kept, a block of that at a time: the row's own begin where the gradient's need
  // not.
  template <Label kLabel>
  void gradient_of_kept(const Row& row, float ce_weight, int64_t first, int size) const {
    const Vec reference_s = all(reference_of(row.sums.max_s));
    for (int64_t at = first, end; at < first + size; at = end) {
      const int64_t b = at / kBlock;
      end = std::min((b + 1) * kBlock, first + size);
      const auto fall = [](float from, float to, double rate) {
        return from == kNothing ? 0.0 : (double(to) - from) * rate;
      };
      const Stored::Block from = row.stored.blocks[b];
      const RowFactors factors =
          D::of_block(row.factors, row.sums, fall(from.most_s, row.sums.max_s, rate_s),
                      fall(from.most_t, row.sums.max_t, rate_t), from.shift);
      for (int64_t i = at; i < end; i += Vec::kLanes) {
        Vec q, kept[3];
        for (int k = 0; k < D::kNumKept; ++k) kept[k] = load(row.stored.columns[k] + i);
        float* const s = row.s + i - first;
        Vec grad = D::gradient(factors, kept, q);
        grad = with_label<kLabel>(grad, q, load(s) - reference_s, ce_weight);
        if (i + Vec::kLanes <= end) {
          store(s, grad);
        } else {
          store(s, grad, static_cast<int>(end - i));  // the next block's logits may follow
        }
      }
    }
  }

  // What the gradient must be multiplied by where the student's logits are capped: found before
  // the gradient takes their place.
  void find_slopes(const float* logits, int size, float* slopes) const {
    for (int i = 0; i < size; i += Vec::kLanes) {
      store(slopes + i, transform_s.slope(load(logits + i)));
    }
  }

  static void multiply(float* block, int size, const float* factors) {
    for (int i = 0; i < size; i += Vec::kLanes) {
      store(block + i, load(block + i) * load(factors + i));
    }
  }

  // With the cross-entropy's part, but for the label's own; z is relative to the largest logit.
  template <Label kLabel>
  static Vec with_label(Vec grad, Vec q, Vec z, float ce_weight) {
    if constexpr (kLabel == Label::kSame) return fma(q, all(ce_weight), grad);
    if constexpr (kLabel == Label::kSquare) return fma(q * q, all(ce_weight), grad);
    if constexpr (kLabel == Label::kOwn)
      return fma(exp2(z * all(float(kLog2E))), all(ce_weight), grad);
    return grad;
  }

  float label_logit(int64_t n, const Transform& transform) const {
    alignas(64) float one[Vec::kLanes];
    load_block(op.student.dtype, op.student.row(n), op.labels(n), 1, transform, 0.0f, one);
    return one[0];
  }
};

}  // namespace mkd::MKD_ISA
