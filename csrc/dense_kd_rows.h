// One row of dense_kd: the sweeps, whatever the divergence. dense_kd.cpp explains them.
#pragma once

#include "block.h"
#include "divergences.h"

namespace mkd::MKD_ISA {

constexpr double kLog2E = 1.44269504088896341;

// How exp(z_s) for the cross-entropy, which knows no temperature, comes from e_s.
enum class Label { kNone, kSame, kSquare, kOwn };  // no label, T = 1, T = 2, any other T

inline float finite_reference(float most) { return most == -__builtin_inff() ? 0.0f : most; }

struct Row {
  const DenseKD& op;
  const int64_t n;
  const float rate_s = static_cast<float>(kLog2E / op.temperature);
  const float rate_t = static_cast<float>(kLog2E / op.teacher_temperature);
  const Label label = !op.labels              ? Label::kNone
                      : op.temperature == 1.0 ? Label::kSame
                      : op.temperature == 2.0 ? Label::kSquare
                                              : Label::kOwn;
  RowSums sums;
  alignas(64) float s[kBlock];  // a block of the student's scaled logits, and then its gradient
  alignas(64) float t[kBlock];  // a block of the teacher's scaled logits

  Row(const DenseKD& op, int64_t n) : op(op), n(n) {}

  int size_at(int64_t begin) const {
    const int64_t rest = op.num_columns - begin;
    return rest < kBlock ? static_cast<int>(rest) : kBlock;
  }

  void load(int64_t begin, int size, float* most_s, float* most_t) {
    const float nothing = -__builtin_inff();
    *most_s = load_block(op.student.dtype, op.student.row(n), begin, size,
                         static_cast<float>(op.logit_scale), nothing, s);
    *most_t = load_block(op.teacher.dtype, op.teacher.row(n), begin, size,
                         static_cast<float>(op.teacher_logit_scale), nothing, t);
  }

  // Raises `most` to `candidate`; returns by how much, 0 where there was nothing before.
  static double rise(float& most, float candidate) {
    if (!(candidate > most)) return 0.0;
    const double before = most;
    most = candidate;
    return before == -__builtin_inff() ? 0.0 : candidate - before;
  }

  // Refer the sums to the largest logits so far.
  void raise(float most_s, float most_t) {
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

  template <class D, Label kLabel>
  void add_to_sums(int size) {
    const Vec reference_s = all(finite_reference(sums.max_s));
    const Vec reference_t = all(finite_reference(sums.max_t));
    const Vec zero = all(0.0f);
    Vec z_s = zero, z_t = zero, z_ce = zero, cross_t = zero, cross_s = zero;
    for (int i = 0; i < size; i += Vec::kLanes) {
      const Vec above_s = MKD_ISA::load(s + i) - reference_s;
      const Vec t_s = above_s * all(rate_s);
      const Vec t_t = (MKD_ISA::load(t + i) - reference_t) * all(rate_t);
      const Vec e_s = exp2(t_s), e_t = exp2(t_t);
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
    if constexpr (kLabel > Label::kSame) sums.z_ce += sum(z_ce);
    if constexpr (D::kNeedsForward) sums.cross_t += sum(cross_t);
    if constexpr (D::kNeedsReverse) sums.cross_s += sum(cross_s);
  }

  // First sweep: sums over the row, block by block.
  template <class D>
  void collect() {
    for (int64_t begin = 0; begin < op.num_columns; begin += kBlock) {
      const int size = size_at(begin);
      float most_s, most_t;
      load(begin, size, &most_s, &most_t);
      raise(most_s, most_t);
      switch (label) {
        case Label::kNone:
          add_to_sums<D, Label::kNone>(size);
          break;
        case Label::kSame:
          add_to_sums<D, Label::kSame>(size);
          break;
        case Label::kSquare:
          add_to_sums<D, Label::kSquare>(size);
          break;
        case Label::kOwn:
          add_to_sums<D, Label::kOwn>(size);
          break;
      }
    }
  }

  // A row of one block is still where the first sweep left it.
  void reload(int64_t begin, int size) {
    float most_s, most_t;
    if (op.num_columns > kBlock) load(begin, size, &most_s, &most_t);
  }

  // Sweep for those whose value needs normalised probabilities; leaves centre and slope.
  template <class D>
  double value_sweep(RowFactors& f) {
    const Vec reference_s = all(finite_reference(sums.max_s));
    const Vec reference_t = all(finite_reference(sums.max_t));
    double total = 0.0, total_pull = 0.0;
    for (int64_t begin = 0; begin < op.num_columns; begin += kBlock) {
      const int size = size_at(begin);
      reload(begin, size);
      Vec values = all(0.0f), pulls = values;
      for (int i = 0; i < size; i += Vec::kLanes) {
        Vec value, pull, q;
        D::terms(f, (MKD_ISA::load(s + i) - reference_s) * all(rate_s),
                 (MKD_ISA::load(t + i) - reference_t) * all(rate_t), value, pull, q);
        values = values + value;
        pulls = pulls + pull;
      }
      total += sum(values);
      total_pull += sum(pulls);
    }
    // NaN where a sum is: the terms above pass over what is not a positive probability.
    const double broken = 0.0 / sums.z_s + 0.0 / sums.z_t;
    f.slope = static_cast<float>(f.weight * kLn2);
    f.centre = static_cast<float>(-f.weight * kLn2 * total_pull + broken);
    return kLn2 * total + broken;
  }

  template <class D, Label kLabel>
  void gradient_block(const RowFactors& f, float ce_weight, int size) {
    const Vec reference_s = all(finite_reference(sums.max_s));
    const Vec reference_t = all(finite_reference(sums.max_t));
    for (int i = 0; i < size; i += Vec::kLanes) {
      const Vec above_s = MKD_ISA::load(s + i) - reference_s;
      const Vec t_t = (MKD_ISA::load(t + i) - reference_t) * all(rate_t);
      Vec q;
      Vec grad = D::gradient(f, above_s * all(rate_s), t_t, q);
      if constexpr (kLabel == Label::kSame) grad = fma(q, all(ce_weight), grad);
      if constexpr (kLabel == Label::kSquare) grad = fma(q * q, all(ce_weight), grad);
      if constexpr (kLabel == Label::kOwn) {
        grad = fma(exp2(above_s * all(float(kLog2E))), all(ce_weight), grad);
      }
      store(s + i, grad);
    }
  }

  // Last sweep: the gradient, block by block, backwards, since the end of the row is in the cache.
  template <class D>
  void write_gradient(const RowFactors& f) {
    const double weight = op.row_weight * op.ce_weight * op.logit_scale;
    const Label used = weight == 0.0 ? Label::kNone : label;
    const float ce_weight =
        static_cast<float>(used == Label::kSame     ? weight
                           : used == Label::kSquare ? weight * sums.z_s * sums.z_s / sums.z_ce
                                                    : weight / sums.z_ce);
    const int64_t column = used == Label::kNone ? -1 : op.labels(n);
    for (int64_t begin = (op.num_columns - 1) / kBlock * kBlock; begin >= 0; begin -= kBlock) {
      const int size = size_at(begin);
      reload(begin, size);
      switch (used) {
        case Label::kNone:
          gradient_block<D, Label::kNone>(f, ce_weight, size);
          break;
        case Label::kSame:
          gradient_block<D, Label::kSame>(f, ce_weight, size);
          break;
        case Label::kSquare:
          gradient_block<D, Label::kSquare>(f, ce_weight, size);
          break;
        case Label::kOwn:
          gradient_block<D, Label::kOwn>(f, ce_weight, size);
          break;
      }
      if (begin <= column && column < begin + size) s[column - begin] -= float(weight);
      store_block(op.grad.dtype, op.grad.row(n), begin, size, s, op.stream_grad);
    }
    const int64_t element = op.grad.element_size();
    __builtin_memset(op.grad.row(n) + op.num_columns * element, 0,
                     (op.num_grad_columns - op.num_columns) * element);
  }

  float label_logit() const {
    alignas(64) float one[Vec::kLanes];
    load_block(op.student.dtype, op.student.row(n), op.labels(n), 1,
               static_cast<float>(op.logit_scale), 0.0f, one);
    return one[0];
  }

  template <class D>
  Terms run() {
    collect<D>();
    RowFactors f = {};
    f.inverse_z_s = static_cast<float>(1.0 / sums.z_s);
    f.inverse_z_t = static_cast<float>(1.0 / sums.z_t);
    f.weight = static_cast<float>(op.row_weight * op.kd_weight * op.kd_scale * op.logit_scale /
                                  op.temperature);
    Terms terms;
    if constexpr (D::kNeedsValueSweep) {
      f.share = static_cast<float>(op.beta);
      f.log2_z_s = static_cast<float>(::log2(sums.z_s));
      f.log2_z_t = static_cast<float>(::log2(sums.z_t));
      terms.kd = value_sweep<D>(f);
    } else {
      terms.kd = D::value(sums, f);
    }
    terms.kd *= op.kd_scale;
    if (op.labels) terms.ce = ::log(sums.z_ce) - (double(label_logit()) - sums.max_s);
    if (op.grad.data) {
      if (op.kd_weight == 0.0) {
        write_gradient<KL<false, false>>(f);
      } else {
        write_gradient<D>(f);
      }
    }
    return terms;
  }
};

inline Terms logits_row(const DenseKD& op, int64_t n) {
  Row row(op, n);
  switch (op.divergence) {
    case Divergence::kForwardKL:
      return row.run<KL<true, false>>();
    case Divergence::kReverseKL:
      return row.run<KL<false, true>>();
    case Divergence::kJeffreys:
      return row.run<KL<true, true>>();
    default:
      return row.run<JSD>();
  }
}

}  // namespace mkd::MKD_ISA
