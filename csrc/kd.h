// What the op hands to the kernels, which are compiled once for each instruction set.
#pragma once

#include <cstdint>
#include <limits>

namespace mkd {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class DType { kFloat32, kBFloat16, kFloat16, kInt8 };
enum class Divergence {
  kForwardKL,
  kReverseKL,
  kJeffreys,
  kJSD,
  kSkewForwardKL,
  kSkewReverseKL,
  kTVD,
  kAlphaBeta,
  kLogitMSE,
  kNone,  // D = 0: skew_* whose mixture is their first distribution
};

// Rows of numbers, contiguous within a row. A row may lie anywhere: strides count elements.
struct Matrix {
  char* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;

  [[gnu::always_inline]] int64_t element_size() const {
    return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2;
  }
  [[gnu::always_inline]] char* row(int64_t n) const {
    return data + n * row_stride * element_size();
  }
};

template <class T>
struct Strided {  // [N] or [N, M]; nothing where data is null
  const T* data = nullptr;
  int64_t stride = 0;
  int64_t inner_stride = 0;

  [[gnu::always_inline]] explicit operator bool() const { return data != nullptr; }
  [[gnu::always_inline]] T operator()(int64_t n, int64_t m = 0) const {
    return data[n * stride + m * inner_stride];
  }
};

// One matched layer: [N, P, D] on either side; grad.data is null where no gradient is asked for.
struct HiddenLayer {
  Matrix student, teacher, grad;
  int64_t student_position_stride = 0, teacher_position_stride = 0;
  int64_t width = 0;
  Strided<float> teacher_scale;  // [N, P] where the teacher is int8
};

// A sparse or sampled teacher: K ids a row with logits or weights, or K packed entries.
enum class Tail { kBucket, kRenormalize, kDrop, kUniform, kSampled, kPacked };
struct SparseEntry {
  int64_t column;  // negative in an empty slot
  int64_t count;   // of a packed entry: how often it was drawn
};
struct Sparse {
  Tail tail = Tail::kBucket;
  int64_t num_kept = 0;       // K
  const char* ids = nullptr;  // int32, int64, or for kPacked three bytes an entry
  int64_t id_bytes = 4, id_row_bytes = 0;
  Matrix values;
  Strided<float> log_z;
  int64_t id_bits = 0, num_draws = 0;

  [[gnu::always_inline]] SparseEntry entry(int64_t n, int64_t k) const {
    const char* at = ids + n * id_row_bytes + k * id_bytes;
    if (tail == Tail::kPacked) {  // little-endian: the id in its low bits, the count above
      uint8_t bytes[3];
      __builtin_memcpy(bytes, at, 3);
      const int64_t packed = bytes[0] | bytes[1] << 8 | bytes[2] << 16, count = packed >> id_bits;
      return {count == 0 ? -1 : packed & ((int64_t{1} << id_bits) - 1), count};
    }
    if (id_bytes == 4) return {*reinterpret_cast<const int32_t*>(at), 0};
    return {*reinterpret_cast<const int64_t*>(at), 0};
  }
};

// One call of a loss op.
struct KD {
  int64_t num_rows = 0;
  int64_t num_columns = 0;       // the real ones
  int64_t num_grad_columns = 0;  // with the padding, whose gradient is 0
  Matrix student, grad;
  Matrix teacher;  // of dense_kd
  Sparse sparse;   // of sparse_kd
  Strided<int64_t> labels;
  Strided<bool> mask;
  int64_t ignore_index = 0;

  Divergence divergence = Divergence::kForwardKL;
  double alpha = 0.0, beta = 0.0;
  double temperature = 1.0, teacher_temperature = 1.0;
  double logit_scale = 1.0, teacher_logit_scale = 1.0;
  double softcap = 0.0, teacher_softcap = 0.0;  // 0: none
  double kd_scale = 1.0, kd_weight = 0.0, ce_weight = 0.0, hidden_weight = 0.0;
  double row_weight = 1.0;  // of one row in the loss: 1 / num_tokens for "mean"

  bool hidden_is_cosine = false;
  const HiddenLayer* layers = nullptr;
  int64_t num_layers = 0;
  int64_t num_positions = 0;
  Strided<bool> hidden_mask;

  bool stream_grad = false;         // write the gradient past the caches
  bool stream_grad_hidden = false;  // those of hidden states

  [[gnu::always_inline]] bool counts(int64_t n) const {
    return !(labels && labels(n) == ignore_index) && !(mask && !mask(n));
  }
};

// The unweighted terms of one row, or their sums over rows.
struct Terms {
  double kd = 0.0, ce = 0.0, hidden = 0.0;

  void operator+=(const Terms& other) {
    kd += other.kd;
    ce += other.ce;
    hidden += other.hidden;
  }
};

// act(part) for each part, on the threads at hand. A kernel has no other way to them: it is
// compiled for its instruction set, and includes nothing that others compile too.
struct Parallel {
  void (*run)(int num_parts, void (*act)(const void* context, int part), const void* context);

  template <class Act>
  void operator()(int num_parts, const Act& act) const {
    run(
        num_parts, [](const void* context, int part) { (*static_cast<const Act*>(context))(part); },
        &act);
  }
};

// Rows that one thread takes, and room for the terms of each.
struct Task {
  int64_t begin = 0, end = 0;
  Terms* terms = nullptr;

  [[gnu::always_inline]] Terms& terms_of(int64_t n) const { return terms[n - begin]; }
};

// The tasks of a thread, one after the other, as it becomes free: so it may go on with one row
// while it begins another. A task's terms are there when the next one is taken.
struct Tasks {
  bool (*take_next)(void* context, Task& task);
  void* context;

  template <class Act>
  [[gnu::always_inline]] void each(const Act& act) const {
    for (Task task; take_next(context, task);) act(task);
  }
};

// The terms and gradients of all rows of the tasks.
using RowsKernel = void (*)(const KD&, const Tasks&);

// The same for one row that counts, split between threads.
using SplitRowKernel = void (*)(const KD&, int64_t n, int num_parts, const Parallel&, Terms* terms);

struct KeepLogits;

// What one instruction set offers.
struct Kernels {
  const char* name;
  RowsKernel dense_rows, sparse_rows;
  SplitRowKernel dense_split_row;
  // row[0..count) *= factor
  void (*scale)(DType, void* row, int64_t count, float factor);
  // what a capture keeps of the rows [begin, end) (keep_logits.h)
  void (*keep_logits)(const KeepLogits&, int64_t begin, int64_t end);
};

// The best kernels for this machine, or those that MKD_FAST_CPU_CAPABILITY names.
const Kernels& kernels();

}  // namespace mkd
