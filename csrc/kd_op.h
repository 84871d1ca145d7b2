// What the loss ops share: their arguments, which mkd_fast/losses/ops.py explains, and the run.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace mkd {

struct Options {
  std::string divergence;
  double alpha, beta, temperature, teacher_temperature, logit_scale, teacher_logit_scale;
  double softcap, teacher_softcap, kd_scale, kd_weight, ce_weight, hidden_weight;
  std::string hidden_distance;
  int64_t vocab_size, ignore_index;
  std::string reduction;
  bool needs_grad_student, needs_grad_hidden;
};

struct Arguments {
  Tensor student;
  std::optional<Tensor> labels, mask, num_tokens;
  std::vector<Tensor> student_hidden, teacher_hidden, teacher_scale;
  std::optional<Tensor> hidden_mask;
  Options options;
};

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

// Runs a kernel over all rows. `op` comes with its teacher; the rest is filled in from `arguments`.
// Rows are split only where there is a kernel for that.
Result run(KD op, Arguments arguments, RowsKernel kernel, SplitRowKernel split_row = nullptr);

}  // namespace mkd
