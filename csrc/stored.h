// What a row's gradient takes from the sweep that made its value, so that no exponential and no
// logarithm is taken again: 8 or 12 bytes a column, which a second-level cache holds at V = 32,000
// and a third-level one above.
#pragma once

#include <vector>

#include "block.h"

namespace mkd::MKD_ISA {

// Of one row: kNumKept arrays (divergences.h), and the logits that each block's exponents refer to,
// with what was taken off its ratios.
struct Stored {
  struct Block {
    float most_s, most_t;
    double shift;
  };
  float* columns[3] = {};
  Block* blocks = nullptr;

  explicit operator bool() const { return blocks != nullptr; }
};

// Memory for what some rows of a thread keep for their gradients.
class Storage {
 public:
  Storage(const KD& op, int num_kept, int num_rows)
      : num_kept(op.grad.data && op.kd_weight != 0.0 ? num_kept : 0),
        num_blocks(op.num_columns / kBlock + 1),
        width(num_blocks * kBlock + kApart) {
    if (this->num_kept == 0) return;
    columns.resize(num_rows * num_kept * width);
    blocks.resize(num_rows * num_blocks);
  }

  Stored of_row(int row) {
    Stored stored;
    if (num_kept == 0) return stored;
    for (int k = 0; k < num_kept; ++k) {
      stored.columns[k] = columns.data() + (row * num_kept + k) * width;
    }
    stored.blocks = blocks.data() + row * num_blocks;
    return stored;
  }

 private:
  // Arrays whole pages apart share the lines of a cache; and registers reach past the last column.
  static constexpr int64_t kApart = 17 * 16;
  static inline thread_local std::vector<float> columns;
  static inline thread_local std::vector<Stored::Block> blocks;

  const int num_kept;
  const int64_t num_blocks, width;
};

}  // namespace mkd::MKD_ISA
