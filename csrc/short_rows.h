// Rows of at most 64 columns (small label sets), as many at a time as a register has lanes.
//
// Such a row is a few registers a side. Its largest logits are found first, so nothing is rescaled;
// its exponentials wait in the first-level cache for the gradient; maxima and sums are left a
// register a row, and those of all rows are joined by one transposition. Rows are read where they
// lie if they are float, and their gradients written there.
#pragma once

#include "dense_kd_rows.h"

namespace mkd::MKD_ISA {

constexpr int kShortColumns = 64;

// For forward KL alone: its gradient needs no logarithms, and its value is within the tests' error
// budget with sums in float, which that of reverse KL was not.
template <Label kLabel>
class ShortRows {
 public:
  explicit ShortRows(const KD& op) : op(op), sweeps(op) {
    at_label[kShortColumns] = static_cast<float>(sweeps.label_weight);
  }

  void run(int64_t begin, const int64_t* numbers, int count, Terms* terms) {
    for (int r = 0; r < count; ++r) {
      from_s[r] = as_floats(op.student, numbers[r], converted_s + r * kShortColumns);
      from_t[r] = as_floats(op.teacher, numbers[r], converted_t + r * kShortColumns);
    }
    find_largest(count);
    collect(numbers, count);
    for (int r = 0; r < count; ++r) {
      RowFactors factors;
      terms[numbers[r] - begin] = finish(r, numbers[r], factors);
      if (op.grad.data) write_gradient(r, numbers[r], factors);
    }
  }

 private:
  using D = KL<true, false>;
  static constexpr int kRows = Vec::kLanes;

  const KD& op;
  const Sweeps<D> sweeps;
  const int columns = static_cast<int>(op.num_columns);
  const Vec scale_s = all(static_cast<float>(op.logit_scale));
  const Vec scale_t = all(static_cast<float>(op.teacher_logit_scale));
  const Vec rate_s = all(sweeps.rate_s), rate_t = all(sweeps.rate_t);
  const float *from_s[kRows], *from_t[kRows];
  alignas(64) float most_s[kRows], most_t[kRows];
  alignas(64) float inverse_z_s[kRows], inverse_z_t[kRows];
  alignas(64) float cross[kRows], log2_ratio[kRows];
  alignas(64) float log2_z_ce[kRows], ce_factor[kRows];
  alignas(64) float e_s[kRows * kShortColumns], e_t[kRows * kShortColumns];
  alignas(64) float converted_s[kRows * kShortColumns], converted_t[kRows * kShortColumns];
  alignas(64) float at_label[2 * kShortColumns] = {};  // the label's weight amid zeros

  const float* as_floats(const Matrix& matrix, int64_t n, float* converted) const {
    if (matrix.dtype == DType::kFloat32) return reinterpret_cast<const float*>(matrix.row(n));
    load_block(matrix.dtype, matrix.row(n), 0, columns, Transform{}, 0.0f, converted);
    return converted;
  }

  // act(i, logits from column i on of either side), -inf past the end of the row.
  template <class Act>
  [[gnu::always_inline]] void each_register(int r, Act act) const {
    const float *s = from_s[r], *t = from_t[r];
    int i = 0;
    for (; i + Vec::kLanes <= columns; i += Vec::kLanes) {
      act(i, load(s + i) * scale_s, load(t + i) * scale_t);
    }
    if (i == columns) return;
    const int rest = columns - i;
    const Mask real = first_lanes(rest);
    act(i, where(real, load(s + i, rest) * scale_s, all(kNothing)),
        where(real, load(t + i, rest) * scale_t, all(kNothing)));
  }

  void find_largest(int count) {
    Vec rows_s[kRows], rows_t[kRows];
    for (int r = 0; r < count; ++r) {
      Vec s_most = all(kNothing), t_most = s_most;
      each_register(r, [&](int, Vec s, Vec t) {
        s_most = max(s, s_most);
        t_most = max(t, t_most);
      });
      rows_s[r] = s_most;
      rows_t[r] = t_most;
    }
    for (int r = count; r < kRows; ++r) rows_s[r] = rows_t[r] = all(0.0f);
    constexpr auto larger = [](Vec a, Vec b) { return max(a, b); };
    store(most_s, across(rows_s, larger));
    store(most_t, across(rows_t, larger));
  }

  // Sums of one register each, and the exponentials. Meanwhile the memory fetches the rows to come,
  // and those that the gradient will be written to.
  void collect(const int64_t* numbers, int count) {
    const int64_t element_s = op.student.element_size(), element_t = op.teacher.element_size();
    const int64_t element = op.grad.element_size();
    Vec rows[4][kRows];
    for (int r = 0; r < count; ++r) {
      const Vec reference_s = all(Sweeps<D>::reference(most_s[r]));
      const Vec reference_t = all(Sweeps<D>::reference(most_t[r]));
      const char* const next_s = op.student.row(numbers[r]) + kFetchAheadBytes;
      const char* const next_t = op.teacher.row(numbers[r]) + kFetchAheadBytes;
      const char* const next_grad = op.grad.data ? op.grad.row(numbers[r]) : nullptr;
      float *keep_s = e_s + r * kShortColumns, *keep_t = e_t + r * kShortColumns;
      const Vec zero = all(0.0f);
      Vec to_s = zero, to_t = zero, to_ce = zero, to_cross = zero;
      each_register(r, [&](int i, Vec s, Vec t) {
        __builtin_prefetch(next_s + i * element_s);
        __builtin_prefetch(next_t + i * element_t);
        if (next_grad) __builtin_prefetch(next_grad + i * element, 1);
        const Vec above_s = s - reference_s;
        const Vec t_s = above_s * rate_s, t_t = (t - reference_t) * rate_t;
        const Vec x_s = exp2(t_s), x_t = exp2(t_t);
        store(keep_s + i, x_s);
        store(keep_t + i, x_t);
        to_s = to_s + x_s;
        to_t = to_t + x_t;
        if constexpr (kLabel == Label::kSquare) to_ce = fma(x_s, x_s, to_ce);
        if constexpr (kLabel == Label::kOwn) to_ce = to_ce + exp2(above_s * all(float(kLog2E)));
        // An event of probability 0 contributes 0, though its logarithm is infinite.
        to_cross = fma(x_t, where(above(x_t, zero), t_t - t_s), to_cross);
      });
      rows[0][r] = to_s;
      rows[1][r] = to_t;
      if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) rows[2][r] = to_ce;
      rows[3][r] = to_cross;
    }
    const auto join = [&](Vec(&sums)[kRows]) {
      for (int r = count; r < kRows; ++r) sums[r] = all(1.0f);
      return across(sums, [](Vec a, Vec b) { return a + b; });
    };
    const Vec z_s = join(rows[0]), z_t = join(rows[1]), one = all(1.0f);
    const Vec weight = all(static_cast<float>(sweeps.label_weight));
    store(inverse_z_s, one / z_s);
    store(inverse_z_t, one / z_t);
    store(log2_ratio, log2_of_sum(z_t / z_s));
    store(cross, join(rows[3]) / z_t);
    if constexpr (kLabel == Label::kNone) return;
    const Vec z = kLabel == Label::kSame ? z_s : join(rows[2]);
    store(log2_z_ce, log2_of_sum(z));
    store(ce_factor, kLabel == Label::kSame     ? weight
                     : kLabel == Label::kSquare ? weight * z_s * (z_s / z)
                                                : weight / z);
  }

  // NaN where there is no sum: NaN, or 0 where all logits are -inf.
  static Vec log2_of_sum(Vec z) { return log2(z) + (all(0.0f) * z + all(0.0f) / z); }

  Terms finish(int r, int64_t n, RowFactors& f) const {
    f.inverse_z_s = inverse_z_s[r];
    f.inverse_z_t = inverse_z_t[r];
    f.weight = sweeps.kd_weight;
    Terms terms;
    terms.kd = op.kd_scale * kLn2 * (double(cross[r]) - log2_ratio[r]);
    if constexpr (kLabel != Label::kNone) {
      const double logit = from_s[r][op.labels(n)] * static_cast<float>(op.logit_scale);
      terms.ce = kLn2 * log2_z_ce[r] - (logit - most_s[r]);
    }
    return terms;
  }

  void write_gradient(int r, int64_t n, const RowFactors& factors) {
    using Nothing = KL<false, false>;
    const bool without_kd = op.kd_weight == 0.0, without_label = sweeps.label_weight == 0.0;
    if (without_kd && without_label) return write_gradient<Nothing, Label::kNone>(r, n, factors);
    if (without_kd) return write_gradient<Nothing, kLabel>(r, n, factors);
    if (without_label) return write_gradient<D, Label::kNone>(r, n, factors);
    write_gradient<D, kLabel>(r, n, factors);
  }

  // GradientD and kUsed leave out what has no weight.
  template <class GradientD, Label kUsed>
  void write_gradient(int r, int64_t n, const RowFactors& factors) {
    const bool in_place = op.grad.dtype == DType::kFloat32;
    char* grad = op.grad.row(n);
    float* to = in_place ? reinterpret_cast<float*>(grad) : converted_s + r * kShortColumns;
    const float* label = at_label + kShortColumns;
    if constexpr (kUsed != Label::kNone) label -= op.labels(n);
    const Vec label_factor = all(ce_factor[r]);
    [[maybe_unused]] const Vec reference_s = all(Sweeps<D>::reference(most_s[r]));
    const float *kept_s = e_s + r * kShortColumns, *kept_t = e_t + r * kShortColumns;
    each_register(r, [&](int i, [[maybe_unused]] Vec s, Vec) {
      const Vec x_s = load(kept_s + i), x_t = load(kept_t + i);
      Vec q;
      Vec result = GradientD::gradient(factors, x_s, x_t, q);
      if constexpr (kUsed == Label::kSame) result = fma(q, label_factor, result);
      if constexpr (kUsed == Label::kSquare) result = fma(q * q, label_factor, result);
      if constexpr (kUsed == Label::kOwn) {
        result = fma(exp2((s - reference_s) * all(float(kLog2E))), label_factor, result);
      }
      if constexpr (kUsed != Label::kNone) result = result - load(label + i);
      if (i + Vec::kLanes <= columns) {
        store(to + i, result);
      } else {
        store(to + i, result, columns - i);
      }
    });
    if (!in_place) store_block(op.grad.dtype, grad, 0, columns, to, false);
    const int64_t element = op.grad.element_size(), padding = op.num_grad_columns - columns;
    if (padding > 0) __builtin_memset(grad + columns * element, 0, padding * element);
  }
};

// terms[n - begin] and the gradient of those rows n in [begin, end) that count.
template <Label kLabel>
inline void short_rows(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  ShortRows<kLabel> rows(op);
  int64_t numbers[Vec::kLanes];
  int count = 0;
  for (int64_t n = begin; n < end; ++n) {
    if (op.counts(n)) numbers[count++] = n;
    if (count == Vec::kLanes || (n + 1 == end && count > 0)) {
      rows.run(begin, numbers, count, terms);
      count = 0;
    }
  }
}

inline void short_rows(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  with_known(label_of(op), [&](auto label) { short_rows<label.value>(op, begin, end, terms); });
}

}  // namespace mkd::MKD_ISA
