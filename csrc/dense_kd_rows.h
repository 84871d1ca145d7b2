// The sweeps over rows of logits, whatever the divergence. dense_kd.cpp explains them.
#pragma once

#include "block.h"
#include "divergences.h"

namespace mkd::MKD_ISA {

constexpr double kLog2E = 1.44269504088896341;
constexpr float kNothing = -__builtin_inff();

// How exp(z_s) for the cross-entropy, which knows no temperature, comes from e_s.
enum class Label { kNone, kSame, kSquare, kOwn };  // no label, T = 1, T = 2, any other T

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
  explicit Sweeps(const KD& op) : op(op) {}

  const KD& op;
  const float rate_s = static_cast<float>(kLog2E / op.temperature);
  const float rate_t = static_cast<float>(kLog2E / op.teacher_temperature);
  const float kd_weight = static_cast<float>(op.row_weight * op.kd_weight * op.kd_scale *
                                             op.logit_scale / op.temperature);
  const double label_weight = op.row_weight * op.ce_weight * op.logit_scale;
  const Transform transform_s{static_cast<float>(op.logit_scale), static_cast<float>(op.softcap)};
  const Transform transform_t{static_cast<float>(op.teacher_logit_scale),
                              static_cast<float>(op.teacher_softcap)};
  const Label label = !op.labels              ? Label::kNone
                      : op.temperature == 1.0 ? Label::kSame
                      : op.temperature == 2.0 ? Label::kSquare
                                              : Label::kOwn;

  // What is subtracted from logits: their maximum, unless there is nothing above -inf.
  static float reference(float most) { return most == kNothing ? 0.0f : most; }

  // First sweep: sums over the row, block by block.
  void collect(Row& row) const {
    row.holds_exponentials = !D::kNeedsLogarithms && label != Label::kOwn && op.softcap == 0.0 &&
                             op.num_columns <= kBlock;
    for (int64_t begin = 0; begin < op.num_columns; begin += kBlock) {
      const int64_t rest = op.num_columns - begin;
      const int size = rest < kBlock ? static_cast<int>(rest) : kBlock;
      float most_s, most_t;
      load_both(row, begin, size, &most_s, &most_t);
      raise(row.sums, most_s, most_t);
      switch (label) {
        case Label::kNone:
          add_to_sums<Label::kNone>(row, size);
          break;
        case Label::kSame:
          add_to_sums<Label::kSame>(row, size);
          break;
        case Label::kSquare:
          add_to_sums<Label::kSquare>(row, size);
          break;
        case Label::kOwn:
          add_to_sums<Label::kOwn>(row, size);
          break;
      }
    }
  }

  // The row's terms, and the factors of its gradient.
  Terms finish(Row& row) const {
    const RowSums& sums = row.sums;
    RowFactors& f = row.factors;
    f.inverse_z_s = static_cast<float>(1.0 / sums.z_s);
    f.inverse_z_t = static_cast<float>(1.0 / sums.z_t);
    f.weight = kd_weight;
    Terms terms;
    if constexpr (D::kNeedsValueSweep) {
      f.share = static_cast<float>(op.beta);
      f.normalise(sums);
      terms.kd = value_sweep(row);
    } else {
      terms.kd = D::value(sums, f);
    }
    terms.kd *= op.kd_scale;
    if (label != Label::kNone) {
      terms.ce = ::log(sums.z_ce) - (double(label_logit(row.n)) - sums.max_s);
    }
    return terms;
  }

  // Last sweep: the gradient, block by block, backwards, since the end of the row is in the cache.
  // Blocks begin where the gradient is aligned if it is to be written past the caches.
  void write_gradient(Row& row) const {
    const Label used = label_weight == 0.0 ? Label::kNone : label;
    const float ce_weight = ce_factor(used, row.sums);
    const int64_t column = used == Label::kNone ? -1 : op.labels(row.n);
    char* grad = op.grad.row(row.n);
    const int64_t head = op.stream_grad ? columns_to_alignment(grad, op.grad.element_size()) : 0;
    for (int64_t begin, end = op.num_columns; end > 0; end = begin) {
      begin = end > head ? head + (end - head - 1) / kBlock * kBlock : 0;
      const int size = static_cast<int>(end - begin);
      reload(row, begin, size);
      alignas(64) float slopes[kBlock];
      if (op.softcap != 0.0) find_slopes(row.s, size, slopes);
      switch (used) {
        case Label::kNone:
          gradient_block<Label::kNone>(row, ce_weight, size);
          break;
        case Label::kSame:
          gradient_block<Label::kSame>(row, ce_weight, size);
          break;
        case Label::kSquare:
          gradient_block<Label::kSquare>(row, ce_weight, size);
          break;
        case Label::kOwn:
          gradient_block<Label::kOwn>(row, ce_weight, size);
          break;
      }
      if (begin <= column && column < end)
        row.s[column - begin] -= static_cast<float>(label_weight);
      if (op.softcap != 0.0) multiply(row.s, size, slopes);
      store_block(op.grad.dtype, grad, begin, size, row.s, op.stream_grad);
    }
    clear_padding(grad);
  }

  // What the softmax of the cross-entropy, or q or its square in its place, is multiplied by.
  float ce_factor(Label used, const RowSums& sums) const {
    return static_cast<float>(used == Label::kSame ? label_weight
                              : used == Label::kSquare
                                  ? label_weight * sums.z_s * sums.z_s / sums.z_ce
                                  : label_weight / sums.z_ce);
  }

  // Columns past the vocabulary have no gradient.
  void clear_padding(char* grad) const {
    const int64_t element = op.grad.element_size();
    __builtin_memset(grad + op.num_columns * element, 0,
                     (op.num_grad_columns - op.num_columns) * element);
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
    const double fall_s = rise_s * rate_s, fall_t = rise_t * rate_t;  // of t_s and t_t
    const double factor_s = ::exp2(-fall_s), factor_t = ::exp2(-fall_t);
    sums.cross_t = factor_t * (sums.cross_t + sums.z_t * (fall_s - fall_t));
    sums.cross_s = factor_s * (sums.cross_s + sums.z_s * (fall_t - fall_s));
    sums.z_s *= factor_s;
    sums.z_t *= factor_t;
    sums.z_ce *= ::exp2(-rise_s * kLog2E);
  }

  // Adds the sums of other columns of the same row.
  void join(RowSums& sums, RowSums others) const {
    raise(sums, others.max_s, others.max_t);
    raise(others, sums.max_s, sums.max_t);
    sums.z_s += others.z_s;
    sums.z_t += others.z_t;
    sums.z_ce += others.z_ce;
    sums.cross_t += others.cross_t;
    sums.cross_s += others.cross_s;
  }

  // Runs are short enough for float: what they leave is added up in double.
  template <Label kLabel>
  void add_to_sums(Row& row, int size) const {
    constexpr int kRun = 32 * Vec::kLanes;
    for (int begin = 0; begin < size; begin += kRun) {
      add_run<kLabel>(row, begin, begin + kRun < size ? begin + kRun : size);
    }
  }

  template <Label kLabel>
  void add_run(Row& row, int begin, int end) const {
    RowSums& sums = row.sums;
    const Vec reference_s = all(reference(sums.max_s)), reference_t = all(reference(sums.max_t));
    const Vec zero = all(0.0f);
    Vec z_s = zero, z_t = zero, z_ce = zero, cross_t = zero, cross_s = zero;
    for (int i = begin; i < end; i += Vec::kLanes) {
      const Vec above_s = load(row.s + i) - reference_s;
      const Vec t_s = above_s * all(rate_s);
      const Vec t_t = (load(row.t + i) - reference_t) * all(rate_t);
      const Vec e_s = exp2(t_s), e_t = exp2(t_t);
      if (row.holds_exponentials) {
        store(row.s + i, e_s);
        store(row.t + i, e_t);
      }
      z_s = z_s + e_s;
      z_t = z_t + e_t;
      if constexpr (kLabel == Label::kSquare) z_ce = fma(e_s, e_s, z_ce);
      if constexpr (kLabel == Label::kOwn) z_ce = z_ce + exp2(above_s * all(float(kLog2E)));
      // An event of probability 0 contributes 0, though its logarithm is infinite.
      const Vec d = t_t - t_s;
      if constexpr (D::kNeedsForward) cross_t = cross_t + where(above(e_t, zero), e_t * d);
      if constexpr (D::kNeedsReverse) cross_s = cross_s - where(above(e_s, zero), e_s * d);
    }
    sums.z_s += sum(z_s);
    sums.z_t += sum(z_t);
    if constexpr (kLabel == Label::kSame) sums.z_ce = sums.z_s;
    if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) sums.z_ce += sum(z_ce);
    if constexpr (D::kNeedsForward) sums.cross_t += sum(cross_t);
    if constexpr (D::kNeedsReverse) sums.cross_s += sum(cross_s);
  }

  // Sweep for those whose value needs normalised probabilities; leaves centre and slope.
  double value_sweep(Row& row) const {
    RowFactors& f = row.factors;
    const Vec reference_s = all(reference(row.sums.max_s));
    const Vec reference_t = all(reference(row.sums.max_t));
    double total = 0.0, total_pull = 0.0;
    for (int64_t begin = 0; begin < op.num_columns; begin += kBlock) {
      const int64_t rest = op.num_columns - begin;
      const int size = rest < kBlock ? static_cast<int>(rest) : kBlock;
      reload(row, begin, size);
      Vec values = all(0.0f), pulls = values;
      for (int i = 0; i < size; i += Vec::kLanes) {
        Vec value, pull, q;
        D::terms(f, (load(row.s + i) - reference_s) * all(rate_s),
                 (load(row.t + i) - reference_t) * all(rate_t), value, pull, q);
        values = values + value;
        pulls = pulls + pull;
      }
      total += sum(values);
      total_pull += sum(pulls);
    }
    // NaN where a sum is: the terms above pass over what is not a positive probability.
    const double broken = 0.0 / row.sums.z_s + 0.0 / row.sums.z_t;
    f.slope = static_cast<float>(f.weight * kLn2);
    f.centre = static_cast<float>(-f.weight * kLn2 * total_pull + broken);
    return kLn2 * total + broken;
  }

  template <Label kLabel>
  void gradient_block(const Row& row, float ce_weight, int size) const {
    if constexpr (!D::kNeedsLogarithms && kLabel != Label::kOwn) {
      if (row.holds_exponentials) return gradient_of_exponentials<kLabel>(row, ce_weight, size);
    }
    const Vec reference_s = all(reference(row.sums.max_s));
    const Vec reference_t = all(reference(row.sums.max_t));
    for (int i = 0; i < size; i += Vec::kLanes) {
      const Vec above_s = load(row.s + i) - reference_s;
      const Vec t_t = (load(row.t + i) - reference_t) * all(rate_t);
      Vec q;
      Vec grad = D::gradient(row.factors, above_s * all(rate_s), t_t, q);
      if constexpr (kLabel == Label::kOwn) {
        grad = fma(exp2(above_s * all(float(kLog2E))), all(ce_weight), grad);
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
      const Vec grad = D::gradient(row.factors, e_s, e_t, e_s, e_t, q);
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

  static int64_t columns_to_alignment(const char* grad, int64_t element) {
    const int64_t line = Vec::kLanes * element;
    return (line - static_cast<int64_t>(reinterpret_cast<uintptr_t>(grad) % line)) % line / element;
  }

  float label_logit(int64_t n) const {
    alignas(64) float one[Vec::kLanes];
    load_block(op.student.dtype, op.student.row(n), op.labels(n), 1, transform_s, 0.0f, one);
    return one[0];
  }
};

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
    sweeps.collect(rows[i]);
  }
  for (int i = 0; i < count; ++i) terms[numbers[i]] = sweeps.finish(rows[i]);
  if (!op.grad.data) return;
  if (op.kd_weight == 0.0) {
    const Sweeps<KL<false, false>> without_kd(op);
    for (int i = 0; i < count; ++i) without_kd.write_gradient(rows[i]);
  } else {
    for (int i = 0; i < count; ++i) sweeps.write_gradient(rows[i]);
  }
}

inline void run_together(const KD& op, const int64_t* numbers, int count, Terms* terms) {
  switch (op.divergence) {
    case Divergence::kForwardKL:
      return run_together<KL<true, false>>(op, numbers, count, terms);
    case Divergence::kReverseKL:
      return run_together<KL<false, true>>(op, numbers, count, terms);
    case Divergence::kJeffreys:
      return run_together<KL<true, true>>(op, numbers, count, terms);
    case Divergence::kJSD:
      return run_together<JSD>(op, numbers, count, terms);
    default:
      break;
  }
}

// terms[n] and the gradient of those rows in [begin, end) that count.
inline void logits_rows(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  const int most = op.num_columns <= kBlock / kMostTogether ? kMostTogether : 1;
  int64_t numbers[kMostTogether];
  int count = 0;
  for (int64_t n = begin; n < end; ++n) {
    if (op.counts(n)) numbers[count++] = n;
    if (count == most || (n + 1 == end && count > 0)) {
      run_together(op, numbers, count, terms);
      count = 0;
    }
  }
}

}  // namespace mkd::MKD_ISA
