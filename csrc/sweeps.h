// The sweeps over a row of logits, whatever the divergence: what each does to a range of columns.
// dense_kd.cpp explains them.
#pragma once

#include "block.h"
#include "divergences.h"
#include "labels.h"

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
};

// Raises `most` to `candidate`; returns by how much, 0 where there was nothing before.
inline double rise(float& most, float candidate) {
  if (!(candidate > most)) return 0.0;
  const double before = most;
  most = candidate;
  return before == kNothing ? 0.0 : candidate - before;
}

template <class D>
class Sweeps {
 public:
  explicit Sweeps(const KD& op) : op(op), divergence(op) {}

  const KD& op;
  const D divergence;
  const TwoFloats exact_rate_s{kLog2E / op.temperature},
      exact_rate_t{kLog2E / op.teacher_temperature};
  const float rate_s = exact_rate_s.high, rate_t = exact_rate_t.high;
  const float kd_weight = static_cast<float>(op.row_weight * op.kd_weight * op.kd_scale *
                                             op.logit_scale / op.temperature);
  const double label_weight = op.row_weight * op.ce_weight * op.logit_scale;
  const Transform transform_s{static_cast<float>(op.logit_scale), static_cast<float>(op.softcap)};
  const Transform transform_t{static_cast<float>(op.teacher_logit_scale),
                              static_cast<float>(op.teacher_softcap)};
  const Label label = op.labels && D::kOfLogits ? Label::kOwn : label_of(op);
  static constexpr bool kIsExact = D::kNeedsLogarithms && !D::kOfLogits;  // with low parts

  // What is subtracted from logits: their maximum, unless there is nothing above -inf.
  static float reference(float most) { return most == kNothing ? 0.0f : most; }

  // First sweep: sums over columns [begin, end), block by block.
  void collect(Row& row, int64_t begin, int64_t end) const {
    row.holds_exponentials = !D::kNeedsLogarithms && label != Label::kOwn && op.softcap == 0.0 &&
                             op.num_columns <= kBlock;
    each_block(begin, end, [&](int64_t first, int size) {
      float most_s, most_t;
      load_both(row, first, size, &most_s, &most_t);
      raise(row.sums, most_s, most_t);
      with_known(label, [&](auto known) { add_to_sums<known.value>(row, size); });
      if constexpr (D::kOfLogits) add_values_of_block(row, size);
    });
  }

  // Between the sweeps: the factors that follow from the sums of all columns.
  void normalise(Row& row) const {
    RowFactors& f = row.factors;
    f.inverse_z_s = static_cast<float>(1.0 / row.sums.z_s);
    f.inverse_z_t = static_cast<float>(1.0 / row.sums.z_t);
    f.weight = kd_weight;
    if constexpr (D::kNeedsValueSweep) f.normalise(row.sums.z_s, row.sums.z_t);
  }

  // Second sweep, for those divergences whose value needs normalised probabilities.
  void add_values(Row& row, int64_t begin, int64_t end) const {
    each_block(begin, end, [&](int64_t first, int size) {
      reload(row, first, size);
      add_values_of_block(row, size);
    });
  }

  // The row's terms, and the last factors of its gradient.
  Terms finish(Row& row) const {
    const RowSums& sums = row.sums;
    RowFactors& f = row.factors;
    Terms terms;
    if constexpr (D::kNeedsValueSweep) {
      // What is not a positive probability may have been passed over: here it is not.
      terms.kd = sums.value + sums.broken();
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
      reload(row, first, size);
      alignas(64) float slopes[kBlock];
      if (op.softcap != 0.0) find_slopes(row.s, size, slopes);
      with_known(used, [&](auto known) { gradient_block<known.value>(row, ce_weight, size); });
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

  void add_values_of_block(Row& row, int size) const {
    constexpr int kRun = 8 * Vec::kLanes;
    Doubles values, pulls, qs;
    for (int i = 0; i < size; i += kRun) {
      Vec value = all(0.0f), pull = value, q = value;
      add_terms(row, i, size - i < kRun ? size - i : kRun, value, pull, q);
      values.add(value);
      pulls.add(pull);
      qs.add(q);
    }
    row.sums.value += values.sum();
    row.sums.pull += pulls.sum();
    row.sums.q += qs.sum();
  }

  // The terms of columns [begin, begin + size) of the block; none of what it is padded with.
  void add_terms(const Row& row, int begin, int size, Vec& values, Vec& pulls, Vec& qs) const {
    const auto add = [&](int i, Mask real) {
      Vec value, pull, q = all(0.0f);
      divergence.terms(row.factors, student(row, load(row.s + i)), teacher(row, load(row.t + i)),
                       value, pull, q);
      values = values + where(real, value);
      pulls = pulls + where(real, pull);
      qs = qs + where(real, q);
    };
    int i = 0;
    for (; i + Vec::kLanes <= size; i += Vec::kLanes) add(begin + i, first_lanes(Vec::kLanes));
    if (i < size) add(begin + i, first_lanes(size - i));
  }

  // What the divergence is given of a register of logits.
  Log student(const Row& row, Vec z) const { return log_of(z, row.sums.max_s, exact_rate_s); }
  Log teacher(const Row& row, Vec z) const { return log_of(z, row.sums.max_t, exact_rate_t); }

  static Log log_of(Vec z, float most, TwoFloats rate) {
    if constexpr (D::kOfLogits) return {z, z};
    const Vec from = all(reference(most));
    if constexpr (D::kTakesPowers) return finite_low(rate * difference(z, from));
    if constexpr (kIsExact) return finite_low(rate * (z - from));
    return {(z - from) * all(rate.high), z};
  }

  static Vec exponential(Log t) {
    if constexpr (kIsExact) return exp2(t);
    return exp2(t.high);
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
    const auto exact = [](TwoFloats rate) {
      return rate.high + (kIsExact ? double(rate.low) : 0.0);
    };
    const double fall_s = rise_s * exact(exact_rate_s), fall_t = rise_t * exact(exact_rate_t);
    const double factor_s = ::exp2(-fall_s), factor_t = ::exp2(-fall_t);
    sums.cross_t = factor_t * (sums.cross_t + sums.z_t * (fall_s - fall_t));
    sums.low_s *= factor_s;
    sums.cross_s = factor_s * (sums.cross_s + sums.z_s * (fall_t - fall_s));
    sums.z_s *= factor_s;
    sums.z_t *= factor_t;
    sums.z_ce *= ::exp2(-rise_s * kLog2E);
  }

  // Runs are short enough for float: what they leave is added up in double.
  template <Label kLabel>
  void add_to_sums(Row& row, int size) const {
    constexpr int kRun = (D::kNeedsReverse ? 8 : 32) * Vec::kLanes;
    for (int begin = 0; begin < size; begin += kRun) {
      add_run<kLabel>(row, begin, begin + kRun < size ? begin + kRun : size);
    }
  }

  template <Label kLabel>
  void add_run(Row& row, int begin, int end) const {
    RowSums& sums = row.sums;
    [[maybe_unused]] const Vec reference_s = all(reference(sums.max_s));
    const Vec zero = all(0.0f);
    Vec z_s = zero, z_t = zero, z_ce = zero, cross_t = zero, cross_s = zero;
    Vec low_t = zero, low_s = zero;  // the low parts of the cross sums
    const float shift = common_ratio(row, begin);
    for (int i = begin; i < end; i += Vec::kLanes) {
      const Vec z = load(row.s + i);
      if constexpr (kLabel == Label::kOwn) {
        z_ce = z_ce + exp2((z - reference_s) * all(float(kLog2E)));
      }
      if constexpr (D::kOfLogits) continue;
      const Log t_s = student(row, z), t_t = teacher(row, load(row.t + i));
      const Vec e_s = exponential(t_s), e_t = exponential(t_t);
      if (row.holds_exponentials) {
        store(row.s + i, e_s);
        store(row.t + i, e_t);
      }
      z_s = z_s + e_s;
      z_t = z_t + e_t;
      if constexpr (kLabel == Label::kSquare) z_ce = fma(e_s, e_s, z_ce);
      // An event of probability 0 contributes 0, though its logarithm is infinite.
      const Log ratio = kIsExact ? difference(t_t, t_s) : Log{t_t.high - t_s.high, zero};
      const Log d = kIsExact ? difference(ratio, {all(shift), zero}) : ratio;
      if constexpr (D::kNeedsForward) add_cross(e_t, d, cross_t, low_t);
      if constexpr (D::kNeedsReverse) add_cross(e_s, d, cross_s, low_s);
    }
    const double run_z_s = sum(z_s), run_z_t = sum(z_t);
    sums.z_s += run_z_s;
    sums.z_t += run_z_t;
    if constexpr (kLabel == Label::kSame) sums.z_ce = sums.z_s;
    if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) sums.z_ce += sum(z_ce);
    if constexpr (D::kNeedsForward) {
      sums.cross_t += (sum(cross_t) + shift * run_z_t) + sum(low_t);
    }
    if constexpr (D::kNeedsReverse) {
      sums.cross_s -= (sum(cross_s) + shift * run_z_s) + sum(low_s);
      sums.low_s -= sum(low_s);
    }
  }

  // A whole number close to t_t - t_s, if these are alike from column to column: where it is taken
  // off, the cross sums round what is left. With exact logarithms only.
  float common_ratio(const Row& row, int column) const {
    if constexpr (!kIsExact) return 0.0f;
    const double d = (row.t[column] - reference(row.sums.max_t)) * double(rate_t) -
                     (row.s[column] - reference(row.sums.max_s)) * double(rate_s);
    return std::abs(d) < 0x1p20 ? static_cast<float>(::rint(d)) : 0.0f;
  }

  // Adds e d, and to low what is lost of it.
  static void add_cross(Vec e, Log d, Vec& total, Vec& total_low) {
    const Vec product = e * d.high;
    const Mask is_event = above(e, all(0.0f));
    total = total + where(is_event, product);
    if constexpr (kIsExact) {
      const Vec rest = fma(e, d.low, lost(e, d.high, product));
      total_low = total_low + where(is_event, max(rest, all(-1e30f)));  // NaN of an infinite d
    }
  }

  template <Label kLabel>
  void gradient_block(const Row& row, float ce_weight, int size) const {
    if constexpr (!D::kNeedsLogarithms && kLabel != Label::kOwn) {
      if (row.holds_exponentials) return gradient_of_exponentials<kLabel>(row, ce_weight, size);
    }
    const Vec reference_s = all(reference(row.sums.max_s));
    for (int i = 0; i < size; i += Vec::kLanes) {
      const Vec z_s = load(row.s + i), z_t = load(row.t + i);
      Vec q;
      Vec grad = divergence.gradient(row.factors, student(row, z_s), teacher(row, z_t), q);
      if constexpr (kLabel == Label::kOwn) {
        const Vec e = exp2((z_s - reference_s) * all(float(kLog2E)));
        grad = fma(e, all(ce_weight), grad);
      } else {
        grad = with_label<kLabel>(grad, q, ce_weight);
      }
      store(row.s + i, grad);
    }
  }

  template <Label kLabel>
  void gradient_of_exponentials(const Row& row, float ce_weight, int size) const {
    for (int i = 0; i < size; i += Vec::kLanes) {
      const Vec e_s = load(row.s + i), e_t = load(row.t + i);
      Vec q;
      const Vec grad = D::gradient(row.factors, e_s, e_t, q);
      store(row.s + i, with_label<kLabel>(grad, q, ce_weight));
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

  template <Label kLabel>
  static Vec with_label(Vec grad, Vec q, float ce_weight) {
    if constexpr (kLabel == Label::kSame) return fma(q, all(ce_weight), grad);
    if constexpr (kLabel == Label::kSquare) return fma(q * q, all(ce_weight), grad);
    return grad;
  }

  float label_logit(int64_t n, const Transform& transform) const {
    alignas(64) float one[Vec::kLanes];
    load_block(op.student.dtype, op.student.row(n), op.labels(n), 1, transform, 0.0f, one);
    return one[0];
  }
};

}  // namespace mkd::MKD_ISA
