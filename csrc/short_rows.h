// Forward KL of rows of at most 64 columns (small label sets), as many at a time as a register has
// lanes.
//
// Such a row is a few registers a side. Its largest logits are found first, so nothing is rescaled;
// its exponentials wait in the first-level cache for the gradient; maxima and sums are left a
// register a row, and those of all rows are joined by one transposition. Rows are read where they
// lie if they are float, and their gradients written there.
//
// Its value is within the tests' error budget with sums in float, which that of reverse KL was not.
#pragma once

#include <type_traits>

#include "dense_kd_rows.h"

namespace mkd::MKD_ISA {

constexpr int kShortColumns = 64;
// Rows of as many registers have code of their own, without loops. A register of fewer lanes than
// 16 makes no row of 60 columns that short.
constexpr int kMostUnrolled = 4;

// kRegisters of columns, the last one maybe not full; 0 where it takes more than kMostUnrolled.
template <Label kLabel, int kRegisters>
class ShortRows {
 public:
  explicit ShortRows(const KD& op) : op(op), sweeps(op) {
    at_label[kShortColumns] = static_cast<float>(sweeps.label_weight);
  }

  void run(const Task& task, const int64_t* numbers, int count) {
    for (int r = 0; r < count; ++r) {
      from_s[r] = as_floats(op.student, numbers[r], converted_s + r * kShortColumns);
      from_t[r] = as_floats(op.teacher, numbers[r], converted_t + r * kShortColumns);
    }
    find_largest(count);
    collect(numbers, count);
    for (int r = 0; r < count; ++r) task.terms_of(numbers[r]) = terms_of(r, numbers[r]);
    if (op.grad.data) write_gradients(numbers, count);
  }

 private:
  using D = KL<true, false>;
  static constexpr int kRows = Vec::kLanes;
  static constexpr int kExponentials = kLabel == Label::kOwn ? 3 : 2;

  const KD& op;
  const Sweeps<D> sweeps;
  const float rate_s = static_cast<float>(op.logit_scale * kLog2E / op.temperature);
  const float rate_t = static_cast<float>(op.teacher_logit_scale * kLog2E / op.teacher_temperature);
  const float rate_own = static_cast<float>(op.logit_scale * kLog2E);  // of cross-entropy
  const int columns = static_cast<int>(op.num_columns);
  const int num_before_last = (columns - 1) / Vec::kLanes;  // registers
  const int rest = columns - num_before_last * Vec::kLanes;
  const float *from_s[kRows], *from_t[kRows];
  // Of each row: its largest logits, its sums, and what exponentials are multiplied by for the
  // gradient.
  alignas(64) float most_s[kRows], most_t[kRows];
  alignas(64) float cross[kRows], log2_ratio[kRows], log2_z_ce[kRows];
  alignas(64) float factor_s[kRows], factor_t[kRows], factor_ce[kRows];
  alignas(64) float kept[kExponentials][kRows * kShortColumns];
  alignas(64) float converted_s[kRows * kShortColumns], converted_t[kRows * kShortColumns];
  alignas(64) float at_label[2 * kShortColumns] = {};  // the label's weight amid zeros

  const float* as_floats(const Matrix& matrix, int64_t n, float* converted) const {
    if (matrix.dtype == DType::kFloat32) return reinterpret_cast<const float*>(matrix.row(n));
    with_type(matrix.dtype, [&](auto x) {
      const auto* const row = reinterpret_cast<const decltype(x)*>(matrix.row(n));
      each_place([&](int i, auto is_last) {
        store(converted + i, is_last.value ? load(row + i, rest) : load(row + i));
      });
    });
    return converted;
  }

  // act(the first column of a register, whether it is the last one).
  template <class Act>
  [[gnu::always_inline]] void each_place(Act act) const {
    const int count = kRegisters > 0 ? kRegisters - 1 : num_before_last;
    for (int k = 0; k < count; ++k) act(k * Vec::kLanes, std::false_type());
    act(count * Vec::kLanes, std::true_type());
  }

  // act(i, logits from column i on of either side), -inf past the end of the row.
  template <class Act>
  [[gnu::always_inline]] void each_register(int r, Act act) const {
    const float *const s = from_s[r], *const t = from_t[r];
    const Mask real = first_lanes(rest);
    each_place([&](int i, auto is_last) {
      if constexpr (is_last.value) {
        act(i, where(real, load(s + i, rest), all(kNothing)),
            where(real, load(t + i, rest), all(kNothing)));
      } else {
        act(i, load(s + i), load(t + i));
      }
    });
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
    const Vec to_t_s = all(rate_s), to_t_t = all(rate_t), to_t_own = all(rate_own);
    const Vec zero = all(0.0f);
    Vec rows[4][kRows];
    for (int r = 0; r < count; ++r) {
      const Vec reference_s = all(reference_of(most_s[r]));
      const Vec reference_t = all(reference_of(most_t[r]));
      const char* const next_s = op.student.row(numbers[r]) + kFetchAheadBytes;
      const char* const next_t = op.teacher.row(numbers[r]) + kFetchAheadBytes;
      const char* const next_grad = op.grad.data ? op.grad.row(numbers[r]) : next_s;
      float* const keep = kept[0] + r * kShortColumns;
      Vec z_s = zero, z_t = zero, z_ce = zero, to_cross = zero;
      each_register(r, [&](int i, Vec s, Vec t) {
        __builtin_prefetch(next_s + i * element_s);
        __builtin_prefetch(next_t + i * element_t);
        __builtin_prefetch(next_grad + i * element, 1);
        // In this order: the difference is exact, and the largest exponent 0.
        const Vec above_s = s - reference_s;
        const Vec t_s = above_s * to_t_s, t_t = (t - reference_t) * to_t_t;
        Vec x[kExponentials];
        Mask counts[kExponentials];
        if constexpr (kLabel == Label::kOwn) {
          exp2({t_s, t_t, above_s * to_t_own}, x, counts);
          z_ce = z_ce + x[2];
        } else {
          exp2({t_s, t_t}, x, counts);
          if constexpr (kLabel == Label::kSquare) z_ce = fma(x[0], x[0], z_ce);
        }
        for (int e = 0; e < kExponentials; ++e) store(keep + e * kRows * kShortColumns + i, x[e]);
        z_s = z_s + x[0];
        z_t = z_t + x[1];
        // An event of probability 0 contributes 0, though its logarithm is infinite.
        to_cross = fma(x[1], where(counts[1], t_t - t_s), to_cross);
      });
      rows[0][r] = z_s;
      rows[1][r] = z_t;
      if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) rows[2][r] = z_ce;
      rows[3][r] = to_cross;
    }
    const auto join = [&](Vec(&sums)[kRows]) {
      for (int r = count; r < kRows; ++r) sums[r] = all(1.0f);
      return across(sums, [](Vec a, Vec b) { return a + b; });
    };
    const Vec z_s = join(rows[0]), z_t = join(rows[1]), weight = all(sweeps.kd_weight);
    store(factor_s, weight / z_s);
    store(factor_t, weight / z_t);
    store(log2_ratio, log2_of_sum(z_t / z_s));
    store(cross, join(rows[3]) / z_t);
    if constexpr (kLabel == Label::kNone) return;
    const Vec z_ce = kLabel == Label::kSame ? z_s : join(rows[2]);
    store(log2_z_ce, log2_of_sum(z_ce));
    store(factor_ce, all(static_cast<float>(sweeps.label_weight)) / z_ce);
  }

  // NaN where there is no sum: NaN, or 0 where all logits are -inf.
  static Vec log2_of_sum(Vec z) { return log2(z) + (all(0.0f) * z + all(0.0f) / z); }

  Terms terms_of(int r, int64_t n) const {
    Terms terms;
    terms.kd = op.kd_scale * kLn2 * (double(cross[r]) - log2_ratio[r]);
    if constexpr (kLabel != Label::kNone) {
      const double logit = from_s[r][op.labels(n)];
      terms.ce = kLn2 * log2_z_ce[r] - op.logit_scale * (logit - most_s[r]);
    }
    return terms;
  }

  void write_gradients(const int64_t* numbers, int count) {
    const bool without_kd = op.kd_weight == 0.0, without_label = sweeps.label_weight == 0.0;
    if (without_kd && without_label) return write_gradients<false, Label::kNone>(numbers, count);
    if (without_kd) return write_gradients<false, kLabel>(numbers, count);
    if (without_label) return write_gradients<true, Label::kNone>(numbers, count);
    write_gradients<true, kLabel>(numbers, count);
  }

  // kHasKD and kUsed leave out what has no weight.
  template <bool kHasKD, Label kUsed>
  void write_gradients(const int64_t* numbers, int count) {
    const bool in_place = op.grad.dtype == DType::kFloat32;
    for (int r = 0; r < count; ++r) {
      char* const grad = op.grad.row(numbers[r]);
      float* const to = in_place ? reinterpret_cast<float*>(grad) : converted_s;
      const float* label = at_label + kShortColumns;
      if constexpr (kUsed != Label::kNone) label -= op.labels(numbers[r]);
      const Vec of_s = all(factor_s[r]), of_t = all(factor_t[r]), of_ce = all(factor_ce[r]);
      const float* const x = kept[0] + r * kShortColumns;
      each_place([&](int i, auto is_last) {
        const auto exponential = [&](int e) { return load(x + e * kRows * kShortColumns + i); };
        Vec result = all(0.0f);
        if constexpr (kHasKD) {  // exactly 0 where p and q are equal
          result = exponential(0) * of_s - exponential(1) * of_t;
        }
        if constexpr (kUsed == Label::kSame) result = fma(exponential(0), of_ce, result);
        if constexpr (kUsed == Label::kSquare) {
          result = fma(exponential(0) * of_ce, exponential(0), result);
        }
        if constexpr (kUsed == Label::kOwn) result = fma(exponential(2), of_ce, result);
        if constexpr (kUsed != Label::kNone) result = result - load(label + i);
        if constexpr (is_last.value) {
          store(to + i, result, rest);
        } else {
          store(to + i, result);
        }
      });
      if (!in_place) store_block(op.grad.dtype, grad, 0, columns, to, false);
      clear_padding(op, grad);
    }
  }
};

// The terms and the gradient of those rows of a task that count.
template <Label kLabel, int kRegisters>
inline void short_rows(const KD& op, const Task& task) {
  ShortRows<kLabel, kRegisters> rows(op);
  int64_t numbers[Vec::kLanes];
  int count = 0;
  for (int64_t n = task.begin; n < task.end; ++n) {
    if (op.counts(n)) numbers[count++] = n;
    if (count == Vec::kLanes || (n + 1 == task.end && count > 0)) {
      rows.run(task, numbers, count);
      count = 0;
    }
  }
}

template <int kRegisters = kMostUnrolled>
inline void short_rows(const KD& op, const Task& task) {
  if constexpr (kRegisters > 0) {
    if (op.num_columns > kRegisters * Vec::kLanes ||
        op.num_columns <= (kRegisters - 1) * Vec::kLanes)
      return short_rows<kRegisters - 1>(op, task);
  }
  with_known(label_of(op), [&](auto label) { short_rows<label.value, kRegisters>(op, task); });
}

}  // namespace mkd::MKD_ISA
