// Everything that runs once an element, compiled once for each instruction set (see vec.h).
#include "dense_kd_rows.h"
#include "hidden_rows.h"

#define MKD_TEXT_OF(name) #name
#define MKD_TEXT(name) MKD_TEXT_OF(name)

namespace mkd::MKD_ISA {

static Terms row(const DenseKD& op, int64_t n) {
  Terms terms = logits_row(op, n);
  if (op.num_layers > 0) terms.hidden = hidden_row(op, n);
  return terms;
}

static void scale(DType dtype, void* row, int64_t count, float factor) {
  alignas(64) float block[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int size = count - begin < kBlock ? static_cast<int>(count - begin) : kBlock;
    load_block(dtype, row, begin, size, factor, 0.0f, block);
    store_block(dtype, row, begin, size, block, false);
  }
}

extern const Kernels kernels;
const Kernels kernels = {MKD_TEXT(MKD_ISA), row, scale};

}  // namespace mkd::MKD_ISA
