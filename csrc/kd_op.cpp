// Everything of a loss op but the sweeps: checks, threads, and from rows to results.
#include "kd_op.h"

#include <algorithm>
#include <atomic>

#include "gradients.h"

namespace mkd {
namespace {

using torch::stable::new_empty;

constexpr int64_t kElementsPerTask = 16384;
// Hidden states of a task's rows lie side by side in each layer: long stretches stream better.
constexpr int64_t kHiddenElementsPerTask = 131072;
constexpr int64_t kSmallestPart = 8192;  // columns of a row that is split between threads
constexpr int64_t kRowsAThread = 8;      // with as many, a few rows left over matter little
// Gradients that a cache would not keep anyway are written past it, in long rows: short ones begin
// and end within cache lines.
constexpr int64_t kStreamedBytes = int64_t{4} << 20;
constexpr int64_t kStreamedRowBytes = 8192;

// What the Python side has promised, checked again where a breach would read foreign memory.
void check_hidden(const Arguments& arguments) {
  const auto& [student, labels, mask, num_tokens, student_hidden, teacher_hidden, teacher_scale,
               hidden_mask, options] = arguments;
  const int64_t num_rows = student.size(0);
  STD_TORCH_CHECK(student_hidden.size() == teacher_hidden.size() &&
                      (teacher_scale.empty() || teacher_scale.size() == teacher_hidden.size()),
                  "kd_loss: student_hidden, teacher_hidden and teacher_scale, where it is given, "
                  "must match layer by layer.");
  for (size_t l = 0; l < student_hidden.size(); ++l) {
    const Tensor &s = student_hidden[l], &t = teacher_hidden[l];
    STD_TORCH_CHECK(s.dim() == 3 && t.dim() == 3 && s.size(0) == num_rows &&
                        t.size(0) == num_rows && s.size(1) == t.size(1) &&
                        s.size(1) == student_hidden[0].size(1) && s.size(2) == t.size(2),
                    "kd_loss: hidden states must be [N, P, D], alike on both sides; layer ", l,
                    " is not.");
    const bool is_int8 = t.scalar_type() == ScalarType::Char;
    STD_TORCH_CHECK(is_int8 == !teacher_scale.empty(), "kd_loss: teacher_hidden[", l,
                    "] must be int8 where teacher_scale is given, and only there.");
    if (!is_int8) continue;
    const Tensor& scale = teacher_scale[l];
    STD_TORCH_CHECK(scale.dim() == 2 && scale.size(0) == num_rows && scale.size(1) == t.size(1) &&
                        scale.scalar_type() == ScalarType::Float,
                    "kd_loss: teacher_scale[", l, "] must be float32 [N, P].");
  }
  STD_TORCH_CHECK(options.hidden_distance == "mse" || options.hidden_distance == "cosine",
                  "kd_loss: hidden_distance must be mse or cosine, got ", options.hidden_distance,
                  ".");
  STD_TORCH_CHECK(!hidden_mask || (!student_hidden.empty() && hidden_mask->dim() == 2 &&
                                   hidden_mask->size(0) == num_rows &&
                                   hidden_mask->size(1) == student_hidden[0].size(1) &&
                                   hidden_mask->scalar_type() == ScalarType::Bool),
                  "kd_loss: hidden_mask must be bool [N, P].");
}

void check_inputs(const Arguments& arguments) {
  const auto& [student, labels, mask, num_tokens, student_hidden, teacher_hidden, teacher_scale,
               hidden_mask, options] = arguments;
  STD_TORCH_CHECK(student.dim() == 2, "kd_loss: student must be [N, V].");
  const int64_t num_rows = student.size(0), vocab_size = options.vocab_size;
  STD_TORCH_CHECK(
      std::min<int64_t>(1, student.size(1)) <= vocab_size && vocab_size <= student.size(1),
      "kd_loss: vocab_size must lie in [1, ", student.size(1), "], got ", vocab_size, ".");
  const auto is_row_vector = [&](const std::optional<Tensor>& t, ScalarType dtype) {
    return !t || (t->dim() == 1 && t->size(0) == num_rows && t->scalar_type() == dtype);
  };
  STD_TORCH_CHECK(is_row_vector(labels, ScalarType::Long) && is_row_vector(mask, ScalarType::Bool),
                  "kd_loss: labels must be int64 [N] and mask bool [N].");
  STD_TORCH_CHECK(
      !num_tokens || (num_tokens->numel() == 1 && num_tokens->scalar_type() == ScalarType::Float),
      "kd_loss: num_tokens must be float32 [].");
  check_hidden(arguments);
}

void check_label(const KD& op, int64_t n) {
  const int64_t label = op.labels(n);
  STD_TORCH_CHECK(0 <= label && label < op.num_columns, "kd_loss: labels must lie in [0, ",
                  op.num_columns, ") or be ignore_index=", op.ignore_index, ", got ", label,
                  " at token ", n, ". Set labels of tokens that do not count to ignore_index.");
}

void check_ids(const KD& op, int64_t n) {
  for (int64_t k = 0; k < op.sparse.num_kept; ++k) {
    const int64_t id = op.sparse.entry(n, k).column;
    STD_TORCH_CHECK(id < op.num_columns, "kd_loss: the teacher's ids must lie in [0, ",
                    op.num_columns, "), or be -1 where a slot is empty, got ", id, " at token ", n,
                    ". Map them to the student's vocabulary, and set those it lacks to -1.");
  }
}

// How many rows count, after checking every label and id of one that does.
int64_t count_rows(const KD& op) {
  int64_t num_counted = 0;
  for (int64_t n = 0; n < op.num_rows; ++n) {
    if (!op.counts(n)) continue;
    ++num_counted;
    if (op.labels) check_label(op, n);
    check_ids(op, n);
  }
  return num_counted;
}

// Where a mixture is one of its two distributions, the divergence is another one.
Divergence divergence_of(const std::string& name, double beta) {
  const bool is_skewed = name == "skew_forward_kl" || name == "skew_reverse_kl";
  if (is_skewed && beta == 1.0) return Divergence::kNone;
  if (is_skewed && beta == 0.0) return divergence_of(name.substr(5), beta);
  if (name == "jsd" && beta == 0.0) return Divergence::kForwardKL;
  if (name == "jsd" && beta == 1.0) return Divergence::kReverseKL;
  if (name == "forward_kl") return Divergence::kForwardKL;
  if (name == "reverse_kl") return Divergence::kReverseKL;
  if (name == "jeffreys") return Divergence::kJeffreys;
  if (name == "jsd") return Divergence::kJSD;
  if (name == "skew_forward_kl") return Divergence::kSkewForwardKL;
  if (name == "skew_reverse_kl") return Divergence::kSkewReverseKL;
  if (name == "tvd") return Divergence::kTVD;
  if (name == "alpha_beta") return Divergence::kAlphaBeta;
  if (name == "logit_mse") return Divergence::kLogitMSE;
  STD_TORCH_CHECK(false, "kd_loss: divergence must be one of LossSpec's, got ", name, ".");
}

// What follows from the options alone.
void read_options(const Options& options, KD& op) {
  op.num_columns = options.vocab_size;
  op.ignore_index = options.ignore_index;
  op.divergence = divergence_of(options.divergence, options.beta);
  op.alpha = options.alpha;
  op.beta = options.beta;
  const bool has_temperature = op.divergence != Divergence::kLogitMSE;
  op.temperature = has_temperature ? options.temperature : 1.0;
  op.teacher_temperature = has_temperature ? options.teacher_temperature : 1.0;
  op.logit_scale = options.logit_scale;
  op.teacher_logit_scale = options.teacher_logit_scale;
  op.softcap = options.softcap;
  op.teacher_softcap = options.teacher_softcap;
  op.kd_scale = options.kd_scale;
  op.kd_weight = options.kd_weight;
  op.hidden_weight = options.hidden_weight;
  op.hidden_is_cosine = options.hidden_distance == "cosine";
}

void clear_row(const KD& op, int64_t n) {
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

double weighted(const KD& op, const Terms& terms) {  // a weight of 0 silences inf and NaN
  double loss = 0.0;
  if (op.kd_weight != 0.0) loss += op.kd_weight * terms.kd;
  if (op.ce_weight != 0.0) loss += op.ce_weight * terms.ce;
  if (op.hidden_weight != 0.0) loss += op.hidden_weight * terms.hidden;
  return loss;
}

struct Outputs {
  float *loss, *kd, *ce, *hidden;

  void write(int64_t n, const KD& op, const Terms& terms) const {
    loss[n] = static_cast<float>(weighted(op, terms));
    kd[n] = static_cast<float>(terms.kd);
    ce[n] = static_cast<float>(terms.ce);
    hidden[n] = static_cast<float>(terms.hidden);
  }
};

int64_t rows_of_task(const KD& op) {
  int64_t row_elements = op.num_columns;
  for (int64_t l = 0; l < op.num_layers; ++l) row_elements += op.num_positions * op.layers[l].width;
  const int64_t task = op.num_layers > 0 ? kHiddenElementsPerTask : kElementsPerTask;
  return task / (row_elements + 1) + 1;
}

// Rows [0, num_rows) in tasks. Each worker has a section of them and goes through it in order, so
// that what is fetched ahead is what it takes next; then it helps the others. Sums are a task's, so
// that they do not depend on who ran it.
class TaskQueue {
 public:
  // Each row's terms go to `per_token` too unless that is null.
  TaskQueue(const KD& op, int64_t num_rows, const Outputs* per_token)
      : op(op),
        num_rows(num_rows),
        per_token(per_token),
        group(rows_of_task(op)),
        sums((num_rows + group - 1) / group),
        sections(std::min<int64_t>(sums.size(), torch::stable::get_num_threads())) {
    const int64_t num_tasks = static_cast<int64_t>(sums.size());
    for (int64_t i = 0; i < num_workers(); ++i) {
      sections[i].next = num_tasks * i / num_workers();
      sections[i].end = num_tasks * (i + 1) / num_workers();
    }
  }

  int64_t num_workers() const { return static_cast<int64_t>(sections.size()); }

  void run_worker(int64_t number, RowsKernel kernel) {
    Worker worker{*this, number, 0, {}};
    kernel(op, {[](void* of, Task& task) { return static_cast<Worker*>(of)->take_next(task); },
                &worker});
  }

  Terms total() const {
    Terms total;
    for (const Terms& sum : sums) total += sum;
    return total;
  }

 private:
  struct alignas(64) Section {  // a cache line of its own
    std::atomic<int64_t> next = 0;
    int64_t end = 0;
  };

  struct Worker {
    TaskQueue& queue;
    const int64_t number;
    int64_t num_done;  // sections that have no task left
    std::vector<Terms> terms;

    bool take_next(Task& task) {
      if (task.terms) queue.add(task);
      for (; num_done < queue.num_workers(); ++num_done) {
        Section& section = queue.sections[(number + num_done) % queue.num_workers()];
        const int64_t next = section.next++;
        if (next < section.end) {
          begin(next, task);
          return true;
        }
      }
      return false;
    }

    void begin(int64_t task_number, Task& task) {
      task.begin = task_number * queue.group;
      task.end = std::min(queue.num_rows, task.begin + queue.group);
      terms.assign(task.end - task.begin, {});
      task.terms = terms.data();
      for (int64_t n = task.begin; n < task.end; ++n) {
        if (!queue.op.counts(n)) clear_row(queue.op, n);
      }
    }
  };

  void add(const Task& task) {
    Terms& sum = sums[task.begin / group];
    for (int64_t n = task.begin; n < task.end; ++n) {
      const Terms& terms = task.terms_of(n);
      sum += terms;
      if (per_token) per_token->write(n, op, terms);
    }
  }

  const KD& op;
  const int64_t num_rows;
  const Outputs* const per_token;
  const int64_t group;
  std::vector<Terms> sums;
  std::vector<Section> sections;
};

// The summed terms of rows [0, num_rows), and each row's to `per_token` unless that is null.
Terms run_rows(const KD& op, int64_t num_rows, RowsKernel kernel, const Outputs* per_token) {
  TaskQueue queue(op, num_rows, per_token);
  torch::stable::parallel_for(0, queue.num_workers(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) queue.run_worker(worker, kernel);
  });
  return queue.total();
}

void run_parts(int num_parts, void (*act)(const void* context, int part), const void* context) {
  torch::stable::parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) act(context, static_cast<int>(part));
  });
}

// The same for all rows. The last few, which would leave threads idle, are split between them:
// one after the other, so that only fewer rows than parts are done sooner than whole ones.
Terms run_all_rows(const KD& op, RowsKernel kernel, SplitRowKernel split_row,
                   const Outputs* per_token) {
  const int64_t num_threads = torch::stable::get_num_threads();
  const int64_t num_parts = std::min(num_threads, op.num_columns / kSmallestPart);
  const int64_t num_left = op.num_rows % num_threads;
  const bool is_split =
      split_row && num_left < num_parts && op.num_rows < kRowsAThread * num_threads;
  const int64_t num_whole = is_split ? op.num_rows - num_left : op.num_rows;
  Terms total = run_rows(op, num_whole, kernel, per_token);
  for (int64_t n = num_whole; n < op.num_rows; ++n) {
    Terms terms;
    if (op.counts(n)) {
      split_row(op, n, static_cast<int>(num_parts), {run_parts}, &terms);
    } else {
      clear_row(op, n);
    }
    total += terms;
    if (per_token) per_token->write(n, op, terms);
  }
  return total;
}

template <class T>
Strided<T> strided(const std::optional<Tensor>& tensor) {
  if (!tensor) return {};
  return {static_cast<const T*>(tensor->data_ptr()), tensor->stride(0),
          tensor->dim() > 1 ? tensor->stride(1) : 0};
}

// The matched layers, and the gradients of the student's if they are wanted.
std::vector<HiddenLayer> hidden_layers(Arguments& arguments, std::vector<Tensor>& grads) {
  std::vector<HiddenLayer> layers;
  for (size_t l = 0; l < arguments.student_hidden.size(); ++l) {
    const Tensor& s = arguments.student_hidden[l] =
        with_contiguous_rows(arguments.student_hidden[l]);
    const Tensor& t = arguments.teacher_hidden[l] =
        with_contiguous_rows(arguments.teacher_hidden[l]);
    layers.push_back({.student = matrix("student_hidden", s),
                      .teacher = {static_cast<char*>(t.data_ptr()),
                                  hidden_dtype_of("teacher_hidden", t), t.stride(0)},
                      .grad = {},
                      .student_position_stride = s.stride(1),
                      .teacher_position_stride = t.stride(1),
                      .width = s.size(2),
                      .teacher_scale = {}});
    HiddenLayer& layer = layers.back();
    if (!arguments.teacher_scale.empty()) {
      layer.teacher_scale = strided<float>(arguments.teacher_scale[l]);
    }
    if (!arguments.options.needs_grad_hidden) continue;
    grads.push_back(new_gradient(s, {s.size(0), s.size(1), s.size(2)}));
    layer.grad = matrix("grad_hidden", grads.back());
  }
  return layers;
}

}  // namespace

Result run(KD op, Arguments arguments, RowsKernel kernel, SplitRowKernel split_row) {
  check_inputs(arguments);
  const Options& options = arguments.options;
  const Tensor student = with_contiguous_rows(arguments.student);
  std::vector<Tensor> grad_hidden;
  const std::vector<HiddenLayer> layers = hidden_layers(arguments, grad_hidden);
  op.num_rows = student.size(0);
  op.num_grad_columns = student.size(1);
  op.student = matrix("student", student);
  op.labels = strided<int64_t>(arguments.labels);
  op.mask = strided<bool>(arguments.mask);
  read_options(options, op);
  op.ce_weight = arguments.labels ? options.ce_weight : 0.0;
  op.layers = layers.data();
  op.num_layers = static_cast<int64_t>(layers.size());
  int64_t hidden_bytes = 0;
  for (const Tensor& g : grad_hidden) hidden_bytes += g.numel() * g.element_size();
  op.stream_grad_hidden = hidden_bytes >= kStreamedBytes;
  op.num_positions = layers.empty() ? 0 : arguments.student_hidden[0].size(1);
  op.hidden_mask = strided<bool>(arguments.hidden_mask);
  const int64_t num_counted = count_rows(op);
  if (options.reduction == "mean") {
    const auto& num_tokens = arguments.num_tokens;
    op.row_weight = 1.0 / (num_tokens ? double(*static_cast<float*>(num_tokens->data_ptr()))
                                      : double(std::max<int64_t>(num_counted, 1)));
  }
  Tensor grad_student = new_empty(student, {0});
  if (options.needs_grad_student) {
    grad_student = new_gradient(student, {op.num_rows, op.num_grad_columns});
    op.grad = matrix("grad_student", grad_student);
    const int64_t row_bytes = op.num_grad_columns * op.grad.element_size();
    op.stream_grad = row_bytes >= kStreamedRowBytes && op.num_rows * row_bytes >= kStreamedBytes;
  }

  const bool is_per_token = options.reduction == "none";
  Tensor parts[4];
  for (Tensor& part : parts) {
    part = is_per_token ? new_empty(student, {op.num_rows}, ScalarType::Float)
                        : new_empty(student, {}, ScalarType::Float);
  }
  const auto data = [&](int i) { return static_cast<float*>(parts[i].data_ptr()); };
  const Outputs outputs{data(0), data(1), data(2), data(3)};
  const Terms total = run_all_rows(op, kernel, split_row, is_per_token ? &outputs : nullptr);
  if (!is_per_token) {
    const double weight = op.row_weight;
    outputs.write(0, op, {total.kd * weight, total.ce * weight, total.hidden * weight});
  }
  return {parts[0], parts[1], parts[2], parts[3], grad_student, grad_hidden};
}

}  // namespace mkd
