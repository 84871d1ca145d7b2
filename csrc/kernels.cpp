// Everything that runs once an element, compiled once for each instruction set (see vec.h).
#include "dense_kd_rows.h"
#include "hidden_rows.h"
#include "long_rows.h"
#include "short_rows.h"

#define MKD_TEXT_OF(name) #name
#define MKD_TEXT(name) MKD_TEXT_OF(name)

namespace mkd::MKD_ISA {

static void logits(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  const bool has_softcap = op.softcap != 0.0 || op.teacher_softcap != 0.0;
  if (op.divergence == Divergence::kForwardKL && !has_softcap) {
    return op.num_columns <= kShortColumns ? short_rows(op, begin, end, terms)
                                           : long_rows(op, begin, end, terms);
  }
  logits_rows(op, begin, end, terms);
}

static void dense_rows(const KD& op, int64_t begin, int64_t end, Terms* terms) {
  if (op.num_columns > 0) logits(op, begin, end, terms);
  hidden_rows(op, begin, end, terms);
  if (op.stream_grad) finish_streams();
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
const Kernels kernels = {MKD_TEXT(MKD_ISA), dense_rows, scale};

}  // namespace mkd::MKD_ISA
