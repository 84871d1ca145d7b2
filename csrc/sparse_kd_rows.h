// The sweeps over a row of the student's logits where the teacher left K entries of it.
// sparse_kd.cpp explains them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "dense_kd_rows.h"
#include "events.h"
#include "labels.h"
#include "sparse_teacher.h"

namespace mkd::MKD_ISA {

// Stands for no policy: what lies outside is one event.
struct OneEvent {};

class SparseRows {
 public:
  explicit SparseRows(const KD& op)
      : op(op), kept(op), exponentials(scratch(op.num_columns / kBlock + 2)) {}

  // The terms and the gradient of those rows of a task that count.
  void run(const Task& task) {
    for (int64_t n = task.begin; n < task.end; ++n) {
      if (op.counts(n)) task.terms_of(n) = run(n);
    }
  }

 private:
  Terms run(int64_t n) {
    row = {};
    row.n = n;
    row.column = op.labels ? op.labels(n) : -1;
    const char* grad = op.grad.row(n);
    blocks = {op.num_columns,
              op.stream_grad ? columns_to_alignment(grad, op.grad.element_size()) : 0};
    kept.read(n, blocks);
    collect();
    normalise();
    const double kd = op.kd_scale * divergence();
    const double ce =
        label == Label::kNone ? 0.0 : ::log(row.z_ce) - (double(row.label_logit) - row.reference);
    if (op.grad.data) write_gradient();
    return {kd, ce, 0.0};
  }

  // What the sweeps leave of one row. What lies outside, where the teacher kept nothing, is summed
  // by itself, with the kept logits taken out: no large share of theirs is ever subtracted again.
  struct Row {
    int64_t n = 0;
    int64_t column = -1;  // of the label
    float label_logit = 0.0f;
    float most = kNothing;                          // the largest logit outside
    double z_outside = 0.0, z_ce_outside = 0.0;     // relative to it
    double reference = 0.0;                         // the largest logit of all
    double log_outside = 0.0, z = 0.0, z_ce = 0.0;  // of all columns, relative to that
    double outside = 0.0;                           // the student's probability outside
    double outside_pull = 0.0, centre = 0.0;        // of what is outside, and of all: see events.h
    bool has_each = false;   // what is outside is not one event, but one a column
    RowFactors factors;      // of those
    double sum_q = 0.0;      // of kept and outside, as the sweeps round them
    float t_t = 0.0f;        // log2 of the teacher's probability of each, but for its factor there
    double pull_each = 0.0;  // the pull of each, where that is all the same
  };

  // What the exponentials of the columns outside are multiplied by to give their gradient.
  struct Factors {
    float linear = 0.0f, square = 0.0f, own = 0.0f, constant = 0.0f;
  };

  // Registers that are added up in float; what they leave is added up in double.
  static constexpr int kRun = 32 * Vec::kLanes;

  // A block's exponentials, relative to the largest logit outside up to there.
  struct alignas(64) Exponentials {
    float values[kBlock];
    float reference;
  };

  static Exponentials* scratch(int64_t num_blocks) {
    static thread_local std::unique_ptr<Exponentials[]> storage;
    static thread_local int64_t size = 0;
    if (size < num_blocks) {
      storage.reset(new Exponentials[num_blocks]);
      size = num_blocks;
    }
    return storage.get();
  }

  const KD& op;
  KeptRow kept;
  Exponentials* const exponentials;
  Row row;
  Blocks blocks;
  alignas(64) float block[kBlock];
  const bool is_sample = op.sparse.tail == Tail::kSampled || op.sparse.tail == Tail::kPacked;
  const Label label = label_of(op);
  const double kd_weight =
      op.row_weight * op.kd_weight * op.kd_scale * op.logit_scale / op.temperature;
  const double label_weight = op.row_weight * op.ce_weight * op.logit_scale;
  const Transform transform{static_cast<float>(op.logit_scale), static_cast<float>(op.softcap)};
  // Whether what is outside may not be one event: p_v is positive there, or F(0, q) no multiple of
  // q.
  const bool takes_columns =
      op.sparse.tail == Tail::kUniform ||
      (op.divergence == Divergence::kAlphaBeta && !is_sample && op.sparse.tail != Tail::kBucket);
  const bool keeps_exponentials = label != Label::kOwn && op.softcap == 0.0 && !takes_columns;
  const double exact_rate = kLog2E / op.temperature;
  const Vec rate = all(static_cast<float>(exact_rate));
  const Vec label_rate = all(static_cast<float>(kLog2E));

  float load(int64_t b) {
    return load_block(op.student.dtype, op.student.row(row.n), blocks.begin(b), blocks.size(b),
                      transform, kNothing, block);
  }

  // First sweep: sums over the columns outside, and the logits of those kept.
  void collect() {
    for (int64_t b = 0; b < blocks.count(); ++b) {
      const float most = take_out_kept(b, load(b));
      if (const double rose = rise(row.most, most); rose != 0.0) {
        row.z_outside *= ::exp(-rose / op.temperature);
        row.z_ce_outside *= ::exp(-rose);
      }
      exponentials[b].reference = reference_outside();
      with_known(label, [&](auto known) { add_block<known.value>(b); });
    }
  }

  // Leaves no probability in the kept columns of the block; returns the largest logit left in it.
  float take_out_kept(int64_t b, float most) {
    const int64_t begin = blocks.begin(b);
    const int size = blocks.size(b);
    if (begin <= row.column && row.column < begin + size) {
      row.label_logit = block[row.column - begin];
    }
    bool took_most = false;
    kept.each_in(b, [&](Kept& k) {
      k.logit = block[k.column - begin];
      block[k.column - begin] = kNothing;
      took_most = took_most || k.logit == most;
    });
    if (!took_most) return most;
    Vec left = all(kNothing);
    for (int i = 0; i < size; i += Vec::kLanes) left = max(mkd::MKD_ISA::load(block + i), left);
    return largest(left);
  }

  // What is subtracted from logits: their maximum, unless there is nothing above -inf.
  float reference_outside() const { return row.most == kNothing ? 0.0f : row.most; }

  template <Label kLabel>
  void add_block(int64_t b) {
    const Vec reference = all(reference_outside());
    const int size = blocks.size(b);
    Doubles total, total_ce;
    float* const values = exponentials[b].values;
    const int64_t element = op.student.element_size();
    const char* const ahead = op.student.row(row.n) + blocks.begin(b) * element + kFetchAheadBytes;
    for (int begin = 0; begin < size; begin += kRun) {
      const int end = std::min(begin + kRun, size);
      Vec z = all(0.0f), z_ce = z;
      for (int i = begin; i < end; i += Vec::kLanes) {
        __builtin_prefetch(ahead + i * element);
        const Vec above = mkd::MKD_ISA::load(block + i) - reference;
        const Vec e = exp2(above * rate);
        if (keeps_exponentials) store(values + i, e);
        z = z + e;
        if constexpr (kLabel == Label::kSquare) z_ce = fma(e, e, z_ce);
        if constexpr (kLabel == Label::kOwn) z_ce = z_ce + exp2(above * label_rate);
      }
      total.add(z);
      total_ce.add(z_ce);
    }
    row.z_outside += total.sum();
    row.z_ce_outside += total_ce.sum();
  }

  // Joins what is outside and what was kept.
  void normalise() {
    float most = row.most;
    for (const Kept& k : kept) rise(most, k.logit);
    row.reference = most == kNothing ? 0.0 : most;
    const double fall = double(row.most) - row.reference;
    row.log_outside = fall / op.temperature + ::log(row.z_outside);
    row.z = ::exp(row.log_outside);
    row.z_ce = ::exp(fall + ::log(row.z_ce_outside));
    for (Kept& k : kept) {
      const double above = k.logit - row.reference;
      k.share = ::exp(above / op.temperature);
      k.label_share = label == Label::kSame     ? k.share
                      : label == Label::kSquare ? k.share * k.share
                      : label == Label::kOwn    ? ::exp(above)
                                                : 0.0;
      row.z += k.share;
      row.z_ce += k.label_share;
    }
    if (label == Label::kSame) row.z_ce = row.z;
  }

  // The divergence, and the pulls that make its gradient.
  double divergence() {
    const double log_z = ::log(row.z);
    double value = 0.0;
    for (Kept& k : kept) {
      k.share /= row.z;
      row.sum_q += k.share;
      const double log_q = (k.logit - row.reference) / op.temperature - log_z;
      const Event event = is_sample ? Event{-k.target * log_q, -k.target}
                                    : event_of(op, {::exp(k.target), k.target}, {k.share, log_q});
      k.pull = event.pull;
      value += event.value;
      row.centre += event.pull;
    }
    row.outside = ::exp(row.log_outside - log_z);
    if (is_sample || kept.size() >= op.num_columns) return value;
    const double log_rest = kept.log_rest();
    const bool has_columns =
        takes_columns && (log_rest > -INFINITY || op.divergence == Divergence::kAlphaBeta);
    const Event event =
        has_columns
            ? each_outside(log_rest - ::log(double(op.num_columns - kept.size())))
            : event_of(op, {::exp(log_rest), log_rest}, {row.outside, row.log_outside - log_z});
    row.outside_pull = row.pull_each == 0.0 ? event.pull : 0.0;
    row.centre += event.pull;
    return value + event.value;
  }

  // A further sweep, where the teacher gives each column outside a probability of its own.
  Event each_outside(double log_p) {
    const bool is_possible = log_p > -INFINITY;
    row.factors.normalise(row.z, is_possible ? ::exp(-log_p) : 1.0);
    row.t_t = is_possible ? 0.0f : kNothing;
    Event event;
    double unit = 1.0;
    with_divergence(op, [&](const auto& policy) {
      event = sum_each(policy);
      unit = unit_of(policy);
    });
    row.has_each = op.divergence != Divergence::kForwardKL;
    if (!row.has_each) {
      row.pull_each = -::exp(log_p);
      event.pull = row.pull_each * double(op.num_columns - kept.size());
    }
    row.factors.weight = static_cast<float>(kd_weight * unit);
    row.factors.pulls = TwoFloats((row.centre + event.pull) / row.sum_q / unit);
    return event;
  }

  template <class D>
  Event sum_each(const D& divergence) {
    const Exponents<true> student(exact_rate, static_cast<float>(row.reference));
    const Vec taken = all(INFINITY);
    const Log t_t{all(row.t_t), all(0.0f)};
    Event event;
    for (int64_t b = 0; b < blocks.count(); ++b) {
      load(b);
      for (int i = blocks.size(b); i % Vec::kLanes != 0; ++i) block[i] = INFINITY;
      kept.each_in(b, [&](const Kept& k) { block[k.column - blocks.begin(b)] = INFINITY; });
      for (int begin = 0; begin < blocks.size(b); begin += kRun) {
        const int end = std::min(begin + kRun, blocks.size(b));
        Vec values = all(0.0f), pulls = values, qs = values;
        for (int i = begin; i < end; i += Vec::kLanes) {
          const Vec logit = mkd::MKD_ISA::load(block + i);
          Vec value, pull, q = all(0.0f);
          divergence.terms(row.factors, student(logit), t_t, value, pull, q);
          const Mask is_outside = above(taken, logit);
          values = values + where(is_outside, value);
          pulls = pulls + where(is_outside, pull);
          qs = qs + where(is_outside, q);
        }
        event.value += sum(values);
        event.pull += sum(pulls);
        row.sum_q += sum(qs);
      }
    }
    event.value *= unit_of(divergence);
    event.pull *= unit_of(divergence);
    return event;
  }

  // What a gradient is multiplied by where the logit z is capped.
  double slope(double z) const {
    if (op.softcap == 0.0) return 1.0;
    return z == -INFINITY ? 0.0 : 1.0 - z / op.softcap * (z / op.softcap);
  }

  // Last sweep: the gradient, block by block, backwards, since the end of the row is in the cache.
  void write_gradient() {
    const bool has_kd = op.kd_weight != 0.0, has_label = label_weight != 0.0;
    char* grad = op.grad.row(row.n);
    if (!has_kd && !has_label) {
      __builtin_memset(grad, 0, op.num_grad_columns * op.grad.element_size());
      return;
    }
    const Factors factors = outside_factors(has_kd, has_label);
    for (Kept& k : kept) {
      const double kd = has_kd ? kd_weight * (k.pull - k.share * row.centre) : 0.0;
      const double ce = has_label ? label_weight * k.label_share / row.z_ce : 0.0;
      k.gradient = static_cast<float>((kd + ce) * slope(k.logit));
    }
    for (int64_t b = blocks.count(); b-- > 0;) {
      if (keeps_exponentials) {
        gradient_of_exponentials(b, factors);
      } else {
        if (blocks.count() > 1) load(b);
        gradient_of_logits(b, factors);
      }
      replace_kept(b);
      store_block(op.grad.dtype, grad, blocks.begin(b), blocks.size(b), block, op.stream_grad);
    }
    clear_padding(op, grad);
  }

  // Of e_v = exp((logit - most) / T_s), outside. Where nothing is outside, there is none.
  Factors outside_factors(bool has_kd, bool has_label) const {
    Factors factors;
    double linear = 0.0;
    if (has_kd && !row.has_each && row.z_outside != 0.0) {
      linear = kd_weight * (row.outside_pull - row.outside * row.centre) / row.z_outside;
    }
    if (has_label) {
      const double factor = label_weight * ::exp(double(row.most) - row.reference) / row.z_ce;
      if (label == Label::kSame) linear += factor;
      if (label == Label::kSquare) factors.square = static_cast<float>(factor);
      if (label == Label::kOwn) factors.own = static_cast<float>(factor);
    }
    factors.linear = static_cast<float>(linear);
    if (has_kd) factors.constant = static_cast<float>(kd_weight * row.pull_each);
    return factors;
  }

  void gradient_of_exponentials(int64_t b, const Factors& factors) {
    const Exponentials& from = exponentials[b];
    // Above 0 only where all logits so far were -inf.
    const double above = (double(from.reference) - reference_outside()) / op.temperature;
    const double fall = ::exp(std::min(above, 0.0));
    const Vec linear = all(static_cast<float>(factors.linear * fall));
    const Vec square = all(static_cast<float>(factors.square * fall * fall));
    for (int i = 0; i < blocks.size(b); i += Vec::kLanes) {
      const Vec e = mkd::MKD_ISA::load(from.values + i);
      store(block + i, e * fma(e, square, linear));
    }
  }

  void gradient_of_logits(int64_t b, const Factors& factors) {
    const int size = blocks.size(b);
    if (row.has_each && op.kd_weight != 0.0) {
      with_divergence(op, [&](const auto& policy) { outside_gradient(policy, factors, size); });
    } else {
      outside_gradient(OneEvent{}, factors, size);
    }
  }

  // The gradients of the kept ids and of the label, which no sweep over columns knows.
  void replace_kept(int64_t b) {
    const int64_t begin = blocks.begin(b);
    kept.each_in(b, [&](const Kept& k) { block[k.column - begin] = k.gradient; });
    if (begin <= row.column && row.column < begin + blocks.size(b)) {
      block[row.column - begin] -= static_cast<float>(label_weight * slope(row.label_logit));
    }
  }

  template <class D>
  void outside_gradient(const D& divergence, const Factors& factors, int size) {
    if (factors.own != 0.0f) {
      outside_gradient<true>(divergence, factors, size);
    } else {
      outside_gradient<false>(divergence, factors, size);
    }
  }

  template <bool kHasOwn, class D>
  void outside_gradient([[maybe_unused]] const D& divergence, const Factors& factors, int size) {
    const Vec most = all(reference_outside());
    [[maybe_unused]] const Exponents<true> student(exact_rate, static_cast<float>(row.reference));
    for (int i = 0; i < size; i += Vec::kLanes) {
      const Vec logit = mkd::MKD_ISA::load(block + i), above = logit - most;
      const Vec e = exp2(above * rate);
      Vec result = fma(e, fma(e, all(factors.square), all(factors.linear)), all(factors.constant));
      if constexpr (kHasOwn) result = fma(exp2(above * label_rate), all(factors.own), result);
      if constexpr (!std::is_same_v<D, OneEvent>) {
        Vec value, pull, q = all(0.0f);
        const Log t_t{all(row.t_t), all(0.0f)};
        divergence.terms(row.factors, student(logit), t_t, value, pull, q);
        result = result + gradient_of_pull(row.factors, pull, q);
      }
      if (op.softcap != 0.0) result = result * transform.slope(logit);
      store(block + i, result);
    }
  }
};

}  // namespace mkd::MKD_ISA
