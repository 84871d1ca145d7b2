// What keep_logits hands to its kernel.
#pragma once

#include "kd.h"

namespace mkd {

// All pointers to results are of row 0; a row follows the one before it.
struct KeepLogits {
  Matrix logits;
  const int64_t* rows = nullptr;  // those of logits that are kept, [N]
  int64_t num_columns = 0;        // V, the real ones

  int64_t num_top = 0;         // K
  int32_t* top_ids = nullptr;  // [N, K]
  float* top_logits = nullptr;

  const double* temperatures = nullptr;  // [num_temperatures]
  int64_t num_temperatures = 0;
  float* log_z = nullptr;  // [N, num_temperatures]

  const double* uniforms = nullptr;  // [N, num_draws]
  int64_t num_draws = 0;
  double draw_temperature = 1.0, proposal_exponent = 1.0;
  int32_t* drawn = nullptr;  // [N, num_draws]
  double* total = nullptr;   // [N], where there are draws
  double* ratios = nullptr;  // [N, num_draws]; null where they are not asked for
};

}  // namespace mkd
