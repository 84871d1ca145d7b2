// Everything that runs once an element, compiled once for each instruction set (see vec.h).
#include "dense_kd_rows.h"
#include "hidden_rows.h"
#include "keep_logits_rows.h"
#include "long_rows.h"
#include "short_rows.h"
#include "sparse_kd_rows.h"

#define MKD_TEXT_OF(name) #name
#define MKD_TEXT(name) MKD_TEXT_OF(name)

namespace mkd::MKD_ISA {

static bool is_plain_forward_kl(const KD& op) {
  return op.divergence == Divergence::kForwardKL && op.softcap == 0.0 && op.teacher_softcap == 0.0;
}

// short_rows.h and long_rows.h look for the largest logits before they are scaled.
static bool keeps_order(const KD& op) {
  return op.logit_scale > 0.0 && op.teacher_logit_scale > 0.0;
}

// logits(task), and the hidden states, of each task.
template <class Logits>
static void each(const KD& op, const Tasks& tasks, Logits logits) {
  tasks.each([&](const Task& task) {
    if (op.num_columns > 0) logits(task);
    hidden_rows(op, task);
  });
}

static void dense_rows(const KD& op, const Tasks& tasks) {
  if (!is_plain_forward_kl(op) || !keeps_order(op)) {
    each(op, tasks, [&](const Task& task) { logits_rows(op, task); });
  } else if (op.num_columns <= kShortColumns) {
    each(op, tasks, [&](const Task& task) { short_rows(op, task); });
  } else {
    with_long_rows(op, [&](auto& rows) {
      each(op, tasks, [&](const Task& task) { rows.run(task); });
      rows.write_rest();
    });
  }
  if (op.stream_grad) finish_streams();
}

static void sparse_rows(const KD& op, const Tasks& tasks) {
  SparseRows rows(op);
  each(op, tasks, [&](const Task& task) { rows.run(task); });
  if (op.stream_grad) finish_streams();
}

static void dense_split_row(const KD& op, int64_t n, int num_parts, const Parallel& parallel,
                            Terms* terms) {
  *terms = is_plain_forward_kl(op) && keeps_order(op)
               ? split_long_row(op, n, num_parts, parallel)
               : split_logits_row(op, n, num_parts, parallel);
  hidden_rows(op, {n, n + 1, terms});
}

static void scale(DType dtype, void* row, int64_t count, float factor) {
  alignas(64) float block[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int size = count - begin < kBlock ? static_cast<int>(count - begin) : kBlock;
    load_block(dtype, row, begin, size, Transform{factor}, 0.0f, block);
    store_block(dtype, row, begin, size, block, false);
  }
}

extern const Kernels kernels;
const Kernels kernels = {MKD_TEXT(MKD_ISA), dense_rows, sparse_rows,
                         dense_split_row,   scale,      keep_logits};

}  // namespace mkd::MKD_ISA
