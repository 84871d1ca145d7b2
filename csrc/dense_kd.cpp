// dense_kd: the distillation loss of dense logits, its label and hidden-state terms, and the
// gradients of all three, in one pass over the rows. mkd_fast/losses/ops.py holds the schema,
// mkd_fast/losses/reference.py the meaning.
//
// With p = softmax(z_t / T_t) and q = softmax(z_s / T_s) over the V real columns, a row's loss is
//
//   kd_weight kd_scale D(p, q) + ce_weight CE(z_s, y) + hidden_weight H
//
// Gradient. Every D here is a sum over columns of F(p_v, q_v). With G_v = dF/dq_v and
// dq_u/dz_v = q_u ([u = v] - q_v) / T_s,
//
//   dD/dz_v = q_v (G_v - sum_u q_u G_u) / T_s,        dCE/dz_v = softmax(z_s)_v - [v = y]
//
// forward KL:  G = -p/q            so  dD/dz = (q - p) / T_s
// reverse KL:  G = log(q/p) + 1    so  dD/dz = q (log(q/p) - D) / T_s
// JSD:         G = (1 - beta) log(q/m)
//
// Sweeps. 1. Sums: the largest logits, Z_s, Z_t, the cross sums that give the KL family its value
// and the cross-entropy's own Z. 2. JSD alone: value and sum q G, which need p and q normalised.
// 3. Gradient. A sweep goes block by block: 1,024 columns of both sides are converted to float in
// the first-level cache, their maximum is found on the way, and the exponentials are taken from
// there. The sums refer to the largest logit so far and are rescaled when it rises, so that the
// first sweep reads memory once. Sums run in float within a block and in double across blocks.
// t = (z - max) log2(e) / T is formed in this order: the difference of large logits is exact.
//
// Bytes a row, element sizes b_s and b_t: V (b_s + b_t) read and V b_s written, if the row pair
// still lies in a cache at the last sweep (256 KB at V = 32,000 in float32); that sweep runs
// backwards, so that what does is used. Operations a column: 2 exponentials (about 10
// instructions each for a whole register) in each sweep, one more for CE unless T_s is 1 or 2,
// where exp(z) is e_s or its square; one logarithm in each sweep of JSD after the first.
// Rows of one block keep e_s and e_t in the first-level cache for the last sweep; in longer rows
// exponentials cost less to take again than to move. Rows of at most 64 columns (small label sets)
// have sweeps of their own, many rows at a time: short_rows.h.
// A fresh gradient costs more in page faults than in arithmetic, hence huge pages, and stores that
// pass the caches by.
//
// Saved for backward: the gradients, complete but for the incoming factor (scale.cpp).
//
// Not supported: softcap, float64, the other divergences, double backward (all eager), and
// splitting a row between threads, so fewer rows than threads leave some idle.
#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "tensors.h"

namespace mkd {
namespace {

using torch::stable::new_empty;

constexpr int64_t kElementsPerTask = 16384;
// Gradients that a cache would not keep anyway are written past it, in long rows: short ones begin
// and end within cache lines.
constexpr int64_t kStreamedBytes = int64_t{4} << 20;
constexpr int64_t kStreamedRowBytes = 8192;

// Ask for huge pages, whole ones inside the tensor; a refusal changes nothing. A fresh gradient of
// 64 MB otherwise costs 16,000 page faults, which take longer than computing it.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t num_bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (start + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (start + num_bytes) & ~(kHugePage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// What the Python side has promised, checked again where a breach would read foreign memory.
void check_shapes(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& labels,
                  const std::optional<Tensor>& mask, const std::optional<Tensor>& num_tokens,
                  const std::vector<Tensor>& student_hidden,
                  const std::vector<Tensor>& teacher_hidden,
                  const std::optional<Tensor>& hidden_mask, int64_t vocab_size) {
  STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == teacher.size(0),
                  "dense_kd: student and teacher must be [N, V] with equal N.");
  const int64_t num_rows = student.size(0);
  STD_TORCH_CHECK(1 <= vocab_size && vocab_size <= std::min(student.size(1), teacher.size(1)),
                  "dense_kd: vocab_size must lie in [1, ",
                  std::min(student.size(1), teacher.size(1)), "], got ", vocab_size, ".");
  const auto is_row_vector = [&](const std::optional<Tensor>& t, ScalarType dtype) {
    return !t || (t->dim() == 1 && t->size(0) == num_rows && t->scalar_type() == dtype);
  };
  STD_TORCH_CHECK(is_row_vector(labels, ScalarType::Long) && is_row_vector(mask, ScalarType::Bool),
                  "dense_kd: labels must be int64 [N] and mask bool [N].");
  STD_TORCH_CHECK(
      !num_tokens || (num_tokens->numel() == 1 && num_tokens->scalar_type() == ScalarType::Float),
      "dense_kd: num_tokens must be float32 [].");
  STD_TORCH_CHECK(student_hidden.size() == teacher_hidden.size(),
                  "dense_kd: student_hidden and teacher_hidden must match layer by layer.");
  for (size_t l = 0; l < student_hidden.size(); ++l) {
    const Tensor &s = student_hidden[l], &t = teacher_hidden[l];
    STD_TORCH_CHECK(s.dim() == 3 && t.dim() == 3 && s.size(0) == num_rows &&
                        t.size(0) == num_rows && s.size(1) == t.size(1) &&
                        s.size(1) == student_hidden[0].size(1) && s.size(2) == t.size(2),
                    "dense_kd: hidden states must be [N, P, D], alike on both sides; layer ", l,
                    " is not.");
  }
  STD_TORCH_CHECK(!hidden_mask || (!student_hidden.empty() && hidden_mask->dim() == 2 &&
                                   hidden_mask->size(0) == num_rows &&
                                   hidden_mask->size(1) == student_hidden[0].size(1) &&
                                   hidden_mask->scalar_type() == ScalarType::Bool),
                  "dense_kd: hidden_mask must be bool [N, P].");
}

// Which rows count, after checking every label of one that does.
int64_t count_rows(const DenseKD& op) {
  int64_t num_counted = 0;
  for (int64_t n = 0; n < op.num_rows; ++n) {
    if (!op.counts(n)) continue;
    ++num_counted;
    if (!op.labels) continue;
    const int64_t label = op.labels(n);
    STD_TORCH_CHECK(0 <= label && label < op.num_columns, "kd_loss: labels must lie in [0, ",
                    op.num_columns, ") or be ignore_index=", op.ignore_index, ", got ", label,
                    " at token ", n, ". Set labels of tokens that do not count to ignore_index.");
  }
  return num_counted;
}

Divergence divergence_of(const std::string& name, double beta) {
  if (name == "forward_kl" || (name == "jsd" && beta == 0.0)) return Divergence::kForwardKL;
  if (name == "reverse_kl" || (name == "jsd" && beta == 1.0)) return Divergence::kReverseKL;
  if (name == "jeffreys") return Divergence::kJeffreys;
  STD_TORCH_CHECK(name == "jsd",
                  "dense_kd: divergence must be forward_kl, reverse_kl, jeffreys or "
                  "jsd, got ",
                  name, ". Pass impl=\"eager\" for the others.");
  return Divergence::kJSD;
}

void clear_row(const DenseKD& op, int64_t n) {
  if (op.grad.data) {
    __builtin_memset(op.grad.row(n), 0, op.num_grad_columns * op.grad.element_size());
  }
  for (int64_t l = 0; l < op.num_layers; ++l) {
    const HiddenLayer& layer = op.layers[l];
    if (!layer.grad.data) continue;
    __builtin_memset(layer.grad.row(n), 0,
                     op.num_positions * layer.width * layer.grad.element_size());
  }
}

double weighted(const DenseKD& op, const Terms& terms) {  // a weight of 0 silences inf and NaN
  double loss = 0.0;
  if (op.kd_weight != 0.0) loss += op.kd_weight * terms.kd;
  if (op.ce_weight != 0.0) loss += op.ce_weight * terms.ce;
  if (op.hidden_weight != 0.0) loss += op.hidden_weight * terms.hidden;
  return loss;
}

// The terms of all rows; threads take the next group of rows as they become free.
std::vector<Terms> run_rows(const DenseKD& op) {
  int64_t row_elements = op.num_columns;
  for (int64_t l = 0; l < op.num_layers; ++l) row_elements += op.num_positions * op.layers[l].width;
  const int64_t group = kElementsPerTask / (row_elements + 1) + 1;
  std::vector<Terms> terms(op.num_rows);
  std::atomic<int64_t> next = 0;
  const auto rows = kernels().rows;
  const auto work = [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(group)) < op.num_rows;) {
      const int64_t end = std::min(op.num_rows, begin + group);
      for (int64_t n = begin; n < end; ++n) {
        if (!op.counts(n)) clear_row(op, n);
      }
      rows(op, begin, end, terms.data());
    }
  };
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, work);
  return terms;
}

struct Outputs {
  float *loss, *kd, *ce, *hidden;

  void write(int64_t n, const DenseKD& op, const Terms& terms) const {
    loss[n] = static_cast<float>(weighted(op, terms));
    kd[n] = static_cast<float>(terms.kd);
    ce[n] = static_cast<float>(terms.ce);
    hidden[n] = static_cast<float>(terms.hidden);
  }
};

void reduce(const DenseKD& op, const std::vector<Terms>& terms, const Outputs& outputs) {
  Terms sums;
  for (const Terms& row : terms) {
    sums.kd += row.kd;
    sums.ce += row.ce;
    sums.hidden += row.hidden;
  }
  outputs.write(0, op,
                {sums.kd * op.row_weight, sums.ce * op.row_weight, sums.hidden * op.row_weight});
}

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

Tensor new_gradient(const Tensor& of, std::initializer_list<int64_t> shape) {
  const Tensor grad = new_empty(of, shape);
  prefer_huge_pages(grad.data_ptr(), grad.numel() * static_cast<int64_t>(grad.element_size()));
  return grad;
}

// The matched layers, and the gradients of the student's if they are wanted.
std::vector<HiddenLayer> hidden_layers(std::vector<Tensor>& student, std::vector<Tensor>& teacher,
                                       bool needs_grad, std::vector<Tensor>& grads) {
  std::vector<HiddenLayer> layers;
  for (size_t l = 0; l < student.size(); ++l) {
    const Tensor& s = student[l] = with_contiguous_rows(student[l]);
    const Tensor& t = teacher[l] = with_contiguous_rows(teacher[l]);
    layers.push_back({.student = matrix("student_hidden", s),
                      .teacher = matrix("teacher_hidden", t),
                      .grad = {},
                      .student_position_stride = s.stride(1),
                      .teacher_position_stride = t.stride(1),
                      .width = s.size(2)});
    if (!needs_grad) continue;
    grads.push_back(new_gradient(s, {s.size(0), s.size(1), s.size(2)}));
    layers.back().grad = matrix("grad_hidden", grads.back());
  }
  return layers;
}

template <class T>
Strided<T> strided(const std::optional<Tensor>& tensor) {
  if (!tensor) return {};
  return {static_cast<const T*>(tensor->data_ptr()), tensor->stride(0),
          tensor->dim() > 1 ? tensor->stride(1) : 0};
}

Result dense_kd(Tensor student, Tensor teacher, std::optional<Tensor> labels,
                std::optional<Tensor> mask, std::optional<Tensor> num_tokens,
                std::vector<Tensor> student_hidden, std::vector<Tensor> teacher_hidden,
                std::optional<Tensor> hidden_mask, std::string divergence, double beta,
                double temperature, double teacher_temperature, double logit_scale,
                double teacher_logit_scale, double kd_scale, double kd_weight, double ce_weight,
                double hidden_weight, int64_t vocab_size, int64_t ignore_index,
                std::string reduction, bool needs_grad_student, bool needs_grad_hidden) {
  check_shapes(student, teacher, labels, mask, num_tokens, student_hidden, teacher_hidden,
               hidden_mask, vocab_size);
  student = with_contiguous_rows(student);
  teacher = with_contiguous_rows(teacher);
  std::vector<Tensor> grad_hidden;
  const std::vector<HiddenLayer> layers =
      hidden_layers(student_hidden, teacher_hidden, needs_grad_hidden, grad_hidden);
  DenseKD op{.num_rows = student.size(0),
             .num_columns = vocab_size,
             .num_grad_columns = student.size(1),
             .student = matrix("student", student),
             .teacher = matrix("teacher", teacher),
             .grad = {},
             .labels = strided<int64_t>(labels),
             .mask = strided<bool>(mask),
             .ignore_index = ignore_index,
             .divergence = divergence_of(divergence, beta),
             .beta = beta,
             .temperature = temperature,
             .teacher_temperature = teacher_temperature,
             .logit_scale = logit_scale,
             .teacher_logit_scale = teacher_logit_scale,
             .kd_scale = kd_scale,
             .kd_weight = kd_weight,
             .ce_weight = labels ? ce_weight : 0.0,
             .hidden_weight = hidden_weight,
             .layers = layers.data(),
             .num_layers = static_cast<int64_t>(layers.size()),
             .num_positions = layers.empty() ? 0 : student_hidden[0].size(1),
             .hidden_mask = strided<bool>(hidden_mask)};
  const int64_t num_counted = count_rows(op);
  if (reduction == "mean") {
    op.row_weight = 1.0 / (num_tokens ? double(*static_cast<float*>(num_tokens->data_ptr()))
                                      : double(std::max<int64_t>(num_counted, 1)));
  }
  Tensor grad_student = new_empty(student, {0});
  if (needs_grad_student) {
    grad_student = new_gradient(student, {op.num_rows, op.num_grad_columns});
    op.grad = matrix("grad_student", grad_student);
    const int64_t row_bytes = op.num_grad_columns * op.grad.element_size();
    op.stream_grad = row_bytes >= kStreamedRowBytes && op.num_rows * row_bytes >= kStreamedBytes;
  }

  const std::vector<Terms> terms = run_rows(op);
  Tensor parts[4];
  for (Tensor& part : parts) {
    part = reduction == "none" ? new_empty(student, {op.num_rows}, ScalarType::Float)
                               : new_empty(student, {}, ScalarType::Float);
  }
  const auto data = [&](int i) { return static_cast<float*>(parts[i].data_ptr()); };
  const Outputs outputs{data(0), data(1), data(2), data(3)};
  if (reduction == "none") {
    for (int64_t n = 0; n < op.num_rows; ++n) outputs.write(n, op, terms[n]);
  } else {
    reduce(op, terms, outputs);
  }
  return {parts[0], parts[1], parts[2], parts[3], grad_student, grad_hidden};
}

}  // namespace
}  // namespace mkd

STABLE_TORCH_LIBRARY_IMPL(mkd_fast, CPU, m) { m.impl("dense_kd", TORCH_BOX(&mkd::dense_kd)); }
