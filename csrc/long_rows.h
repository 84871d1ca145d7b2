// Forward KL of rows that are too long for short_rows.h: every logit is read once, and its two
// exponentials are taken once.
//
// A block's exponentials refer to the largest logits found before it (within the first block, to
// its own). Only where a block goes above those by more than kMostRise is it taken again, with the
// larger reference: nobody has to look for the maximum first. They stay in a scratch row, 8 bytes a
// column, which a second-level cache holds at V = 32,000 and a third-level one above, with the
// references of their block; the gradient is made of them, block by block, backwards. What comes
// from memory next is fetched while arithmetic is going on, a line for each line that is used.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "dense_kd_rows.h"

namespace mkd::MKD_ISA {

// Columns [first, last) of rows, whose exponentials are kept in `storage`.
template <Label kLabel>
class LongRows {
 public:
  LongRows(const KD& op, int64_t first, int64_t last, std::vector<float>& storage)
      : op(op), sweeps(op), first(first), last(last) {
    const int64_t most_blocks = (last - first) / kBlock + 2;  // the first and last may be short
    references.resize(most_blocks);
    storage.resize(kArrays * most_blocks * kBlock + kAlignment);
    const auto address = reinterpret_cast<uintptr_t>(storage.data());
    e_s = storage.data() + (-address % (kAlignment * sizeof(float))) / sizeof(float);
    e_t = e_s + most_blocks * kBlock;
    e_own = e_t + most_blocks * kBlock;
  }

  // First sweep: the sums, and the exponentials for the last one.
  RowSums collect(int64_t n) {
    const int64_t element = op.grad.element_size();
    head = !op.stream_grad ? 0
                           : std::min(last - first, Sweeps<D>::columns_to_alignment(
                                                        op.grad.row(n) + first * element, element));
    sums = {};
    for (int64_t b = 0; b < num_blocks(); ++b) {
      switch (op.student.dtype) {
        case DType::kBFloat16:
          collect_of<BFloat16>(n, b);
          break;
        case DType::kFloat16:
          collect_of<Float16>(n, b);
          break;
        default:
          collect_of<float>(n, b);
      }
    }
    return sums;
  }

  // The row's terms, and the factors of its gradient, from the sums of all its columns.
  Terms finish(int64_t n, const RowSums& all_sums, RowFactors& factors) const {
    Row row{n, nullptr, nullptr, false, all_sums, {}};
    sweeps.normalise(row);
    const Terms terms = sweeps.finish(row);
    factors = row.factors;
    return terms;
  }

  // Last sweep, over what the first one has kept.
  void write_gradient(int64_t n, const RowSums& all_sums, const RowFactors& factors) {
    sums = all_sums;
    using Nothing = KL<false, false>;
    const bool without_kd = op.kd_weight == 0.0, without_label = sweeps.label_weight == 0.0;
    if (without_kd && without_label) return write_gradient<Nothing, Label::kNone>(n, factors);
    if (without_kd) return write_gradient<Nothing, kLabel>(n, factors);
    if (without_label) return write_gradient<D, Label::kNone>(n, factors);
    write_gradient<D, kLabel>(n, factors);
  }

 private:
  using D = KL<true, false>;
  static constexpr int kArrays = kLabel == Label::kOwn ? 3 : 2;
  static constexpr size_t kAlignment = 16;  // floats
  // In powers of two. An exponential's relative error grows with its exponent.
  static constexpr float kMostRise = 1.0f;
  static constexpr int kRun = 32 * Vec::kLanes;  // registers that are added up in float

  struct Reference {
    float s, t;
  };

  const KD& op;
  const Sweeps<D> sweeps;
  const Vec scale_s = all(static_cast<float>(op.logit_scale));
  const Vec scale_t = all(static_cast<float>(op.teacher_logit_scale));
  const int64_t first, last;
  RowSums sums;
  int64_t head;                       // columns before the first aligned one of the gradient
  std::vector<Reference> references;  // of each block
  float *e_s, *e_t, *e_own;

  // Block b is [begin, end), and its exponentials lie at b * kBlock.
  int64_t num_blocks() const { return (head > 0) + (last - first - head + kBlock - 1) / kBlock; }
  int64_t begin_of(int64_t b) const {
    return first + (b == 0 ? 0 : head + (b - (head > 0)) * kBlock);
  }
  int64_t end_of(int64_t b) const { return std::min(begin_of(b + 1), last); }

  template <class S>
  void collect_of(int64_t n, int64_t b) {
    switch (op.teacher.dtype) {
      case DType::kBFloat16:
        return collect_of<S, BFloat16>(n, b);
      case DType::kFloat16:
        return collect_of<S, Float16>(n, b);
      default:
        return collect_of<S, float>(n, b);
    }
  }

  template <class S, class T>
  void collect_of(int64_t n, int64_t b) {
    const int64_t begin = begin_of(b);
    const int size = static_cast<int>(end_of(b) - begin);
    const S* s = reinterpret_cast<const S*>(op.student.row(n)) + begin;
    const T* t = reinterpret_cast<const T*>(op.teacher.row(n)) + begin;
    if (b == 0) sweeps.raise(sums, largest_of(s, size, scale_s), largest_of(t, size, scale_t));
    for (;;) {
      const Reference reference =
          references[b] = {sweeps.reference(sums.max_s), sweeps.reference(sums.max_t)};
      BlockSums block;
      for (int i = 0; i < size; i += kRun) {
        add_run(s + i, t + i, std::min(kRun, size - i), b * kBlock + i, reference, block);
      }
      const float most_s = largest(block.most_s), most_t = largest(block.most_t);
      const float rate_s =
          kLabel == Label::kOwn ? std::max(sweeps.rate_s, float(kLog2E)) : sweeps.rate_s;
      if (!((most_s - reference.s) * rate_s > kMostRise) &&
          !((most_t - reference.t) * sweeps.rate_t > kMostRise)) {
        block.add_to(sums);
        return;
      }
      sweeps.raise(sums, most_s, most_t);
    }
  }

  template <class X>
  static float largest_of(const X* from, int size, Vec scale) {
    Vec most = all(kNothing);
    int i = 0;
    for (; i + Vec::kLanes <= size; i += Vec::kLanes) most = max(load(from + i) * scale, most);
    if (i < size) {
      most = max(where(first_lanes(size - i), load(from + i, size - i) * scale, most), most);
    }
    return largest(most);
  }

  struct RunSums {
    Vec z_s = all(0.0f), z_t = z_s, z_ce = z_s, cross = z_s;
  };
  struct BlockSums {
    Vec most_s = all(kNothing), most_t = most_s;
    Doubles z_s, z_t, z_ce, cross;

    void add_to(RowSums& sums) const {
      const double total_s = z_s.sum();
      sums.z_s += total_s;
      sums.z_t += z_t.sum();
      sums.z_ce += kLabel == Label::kSame ? total_s : z_ce.sum();
      sums.cross_t += cross.sum();
    }
  };

  // One register of either side: its exponentials are kept and added.
  [[gnu::always_inline]] void add_register(Vec s, Vec t, int64_t at, Vec reference_s,
                                           Vec reference_t, RunSums& run, BlockSums& block) const {
    block.most_s = max(s, block.most_s);  // a NaN is passed over here, and found in the sums
    block.most_t = max(t, block.most_t);
    const Vec above_s = s - reference_s;
    const Vec t_s = above_s * all(sweeps.rate_s), t_t = (t - reference_t) * all(sweeps.rate_t);
    const Vec x_s = exp2(t_s), x_t = exp2(t_t);
    store(e_s + at, x_s);
    store(e_t + at, x_t);
    run.z_s = run.z_s + x_s;
    run.z_t = run.z_t + x_t;
    if constexpr (kLabel == Label::kSquare) run.z_ce = fma(x_s, x_s, run.z_ce);
    if constexpr (kLabel == Label::kOwn) {
      const Vec x_own = exp2(above_s * all(float(kLog2E)));
      store(e_own + at, x_own);
      run.z_ce = run.z_ce + x_own;
    }
    // An event of probability 0 contributes 0, though its logarithm is infinite.
    run.cross = fma(x_t, where(above(x_t, all(0.0f)), t_t - t_s), run.cross);
  }

  template <class S, class T>
  void add_run(const S* s, const T* t, int count, int64_t at, Reference reference,
               BlockSums& block) const {
    const Vec reference_s = all(reference.s), reference_t = all(reference.t);
    RunSums run;
    int i = 0;
    for (; i + Vec::kLanes <= count; i += Vec::kLanes) {
      __builtin_prefetch(reinterpret_cast<const char*>(s + i) + kFetchAheadBytes);
      __builtin_prefetch(reinterpret_cast<const char*>(t + i) + kFetchAheadBytes);
      add_register(load(s + i) * scale_s, load(t + i) * scale_t, at + i, reference_s, reference_t,
                   run, block);
    }
    if (i < count) {
      const Mask real = first_lanes(count - i);
      add_register(where(real, load(s + i, count - i) * scale_s, all(kNothing)),
                   where(real, load(t + i, count - i) * scale_t, all(kNothing)), at + i,
                   reference_s, reference_t, run, block);
    }
    block.z_s.add(run.z_s);
    block.z_t.add(run.z_t);
    if constexpr (kLabel == Label::kSquare || kLabel == Label::kOwn) block.z_ce.add(run.z_ce);
    block.cross.add(run.cross);
  }

  // GradientD and kUsed leave out what has no weight.
  template <class GradientD, Label kUsed>
  void write_gradient(int64_t n, const RowFactors& whole) {
    const float ce_weight = sweeps.ce_factor(kUsed, sums);
    const int64_t column = kUsed == Label::kNone ? -1 : op.labels(n);
    char* const grad = op.grad.row(n);
    alignas(64) float block[kBlock];
    for (int64_t b = num_blocks() - 1; b >= 0; --b) {
      const int64_t begin = begin_of(b), end = end_of(b);
      // The block's reference may be below the row's.
      const double below_s = double(sweeps.reference(sums.max_s)) - references[b].s;
      const double below_t = double(sweeps.reference(sums.max_t)) - references[b].t;
      RowFactors factors = whole;
      if (below_s != 0.0) factors.inverse_z_s *= float(::exp2(-below_s * sweeps.rate_s));
      if (below_t != 0.0) factors.inverse_z_t *= float(::exp2(-below_t * sweeps.rate_t));
      const Vec own = all(ce_weight * float(::exp2(-below_s * kLog2E)));
      for (int64_t i = 0; i < end - begin; i += Vec::kLanes) {
        const int64_t at = b * kBlock + i;
        const Vec x_s = load(e_s + at), x_t = load(e_t + at);
        Vec q;
        Vec result = GradientD::gradient(factors, x_s, x_t, x_s, x_t, q);
        if constexpr (kUsed == Label::kOwn) {
          result = fma(load(e_own + at), own, result);
        } else {
          result = Sweeps<D>::template with_label<kUsed>(result, q, ce_weight);
        }
        store(block + i, result);
      }
      if (begin <= column && column < end) {
        block[column - begin] -= static_cast<float>(sweeps.label_weight);
      }
      store_block(op.grad.dtype, grad, begin, static_cast<int>(end - begin), block, op.stream_grad);
    }
    if (last == op.num_columns) sweeps.clear_padding(grad);
  }
};

// act(std::integral_constant<Label, ...>) with the label of the call.
template <class Act>
inline void with_label_of(const KD& op, Act act) {
  switch (Sweeps<KL<true, false>>(op).label) {
    case Label::kNone:
      return act(std::integral_constant<Label, Label::kNone>{});
    case Label::kSame:
      return act(std::integral_constant<Label, Label::kSame>{});
    case Label::kSquare:
      return act(std::integral_constant<Label, Label::kSquare>{});
    case Label::kOwn:
      return act(std::integral_constant<Label, Label::kOwn>{});
  }
}

// terms[n - begin] and the gradient of those rows n in [begin, end) that count.
inline void long_rows(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  with_label_of(op, [&](auto label) {
    static thread_local std::vector<float> storage;
    LongRows<label> rows(op, 0, op.num_columns, storage);
    for (int64_t n = begin; n < end; ++n) {
      if (!op.counts(n)) continue;
      const RowSums sums = rows.collect(n);
      RowFactors factors;
      terms[n - begin] = rows.finish(n, sums, factors);
      if (op.grad.data) rows.write_gradient(n, sums, factors);
    }
  });
}

// The same for one row, in parts that different threads take.
inline Terms split_long_row(const KD& op, int64_t n, int num_parts, const Parallel& parallel) {
  Terms terms;
  with_label_of(op, [&](auto label) {
    using Part = LongRows<label>;
    std::vector<std::vector<float>> storages(num_parts);
    std::vector<Part> parts;
    std::vector<RowSums> sums(num_parts);
    for (int i = 0; i < num_parts; ++i) {
      parts.emplace_back(op, begin_of_part(op, i, num_parts), begin_of_part(op, i + 1, num_parts),
                         storages[i]);
    }
    parallel(num_parts, [&](int i) { sums[i] = parts[i].collect(n); });
    const Sweeps<KL<true, false>> sweeps(op);
    for (int i = 1; i < num_parts; ++i) sweeps.join(sums[0], sums[i]);
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
