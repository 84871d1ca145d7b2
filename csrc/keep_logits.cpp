// keep_logits: what a capture keeps of rows of a teacher's logits, in one walk over each row.
// mkd_fast/teacher/keep_logits.py holds the schema and the same in plain torch, its meaning.
//
//   top-k     the K largest of a row with their ids, by falling logit, of equals the lowest id
//   log_z     log sum_v exp(z_v / T) at each of some temperatures
//   draws     for each uniform number u of a row, the first id whose probability and those of all
//             ids below it sum to more than u, in the proposal r proportional to exp(tau z / T)
//   ratios    p / r of each draw, p = softmax(z / T): exp((1 - tau) z / T) * (sum of r's
//             exponentials) / (sum of p's)
//
// Blocks and groups. A block is 1,024 columns, a group 64 of it. The walk reads each block once
// into the first-level cache, and keeps of every group its largest logit and, for every exponent
// asked for (1 / T, tau / T), the sum of its exponentials, each relative to its block's largest
// logit; log_z and the cumulative sums of blocks are then put together in double. (A float sum of a
// whole row loses columns of small probability; a sum of 64 does not.)
//
// Top-k. K groups whose largest is at least t hold at least K logits of at least t: t is found by
// bisection on the groups' largest, and only groups that reach it are read again, which is about
// one in V / 64 K of them.
//
// Draws. A uniform number falls into a block by its cumulative sum, into a group by those of its
// block, and into a column by the group's exponentials, taken again. So a draw costs 64
// exponentials and no cumulative sum of the row.
//
// Bytes a row, element size b: V b read, and the groups that are read again from a nearer cache.
// Operations: one exponential a column for each different exponent.
//
// A row that holds a NaN or +inf has NaN for log_z and for the total of its proposal, and any ids
// of the vocabulary for draws. A row is worked on by one thread and knows nothing of other rows, so
// its results depend on its logits and the instruction set alone.
//
// Not supported: float64, gradients.
#include "keep_logits.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "tensors.h"

namespace mkd {
namespace {

using torch::stable::new_empty;

using Kept = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

void check_arguments(const Tensor& logits, const Tensor& rows, int64_t num_columns, int64_t num_top,
                     const Tensor& uniforms) {
  STD_TORCH_CHECK(logits.dim() == 2 && 0 < num_columns && num_columns <= logits.size(1),
                  "keep_logits: logits must be [M, V] with at least num_columns columns, ",
                  num_columns, ".");
  STD_TORCH_CHECK(num_columns <= std::numeric_limits<int32_t>::max(),
                  "keep_logits: num_columns must fit in 31 bits, got ", num_columns, ".");
  STD_TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == ScalarType::Long && rows.is_contiguous(),
                  "keep_logits: rows must be contiguous int64 [N].");
  STD_TORCH_CHECK(0 <= num_top && num_top <= num_columns,
                  "keep_logits: num_top must lie in [0, num_columns], got ", num_top, ".");
  STD_TORCH_CHECK(uniforms.dim() == 2 && uniforms.size(0) == rows.size(0) &&
                      uniforms.scalar_type() == ScalarType::Double && uniforms.is_contiguous(),
                  "keep_logits: uniforms must be contiguous float64 [N, number of draws].");
  const int64_t* row = static_cast<const int64_t*>(rows.data_ptr());
  for (int64_t n = 0; n < rows.size(0); ++n) {
    STD_TORCH_CHECK(0 <= row[n] && row[n] < logits.size(0), "keep_logits: rows must lie in [0, ",
                    logits.size(0), "), got ", row[n], ".");
  }
}

Kept keep_logits(Tensor logits, Tensor rows, Tensor uniforms, int64_t num_columns, int64_t num_top,
                 std::vector<double> temperatures, double draw_temperature,
                 double proposal_exponent) {
  check_arguments(logits, rows, num_columns, num_top, uniforms);
  logits = with_contiguous_rows(logits);
  const int64_t num_rows = rows.size(0), num_draws = uniforms.size(1);
  const bool needs_ratios = proposal_exponent != 1.0;
  const int64_t num_temperatures = static_cast<int64_t>(temperatures.size());
  const Tensor top_ids = new_empty(logits, {num_rows, num_top}, ScalarType::Int);
  const Tensor top_logits = new_empty(logits, {num_rows, num_top}, ScalarType::Float);
  const Tensor log_z = new_empty(logits, {num_rows, num_temperatures}, ScalarType::Float);
  const Tensor drawn = new_empty(logits, {num_rows, num_draws}, ScalarType::Int);
  const Tensor total = new_empty(logits, {num_rows, num_draws > 0 ? 1 : 0}, ScalarType::Double);
  const Tensor ratios =
      new_empty(logits, {num_rows, needs_ratios ? num_draws : 0}, ScalarType::Double);

  KeepLogits op;
  op.logits = matrix("logits", logits);
  op.rows = static_cast<const int64_t*>(rows.data_ptr());
  op.num_columns = num_columns;
  op.num_top = num_top;
  op.top_ids = static_cast<int32_t*>(top_ids.data_ptr());
  op.top_logits = static_cast<float*>(top_logits.data_ptr());
  op.temperatures = temperatures.data();
  op.num_temperatures = num_temperatures;
  op.log_z = static_cast<float*>(log_z.data_ptr());
  op.uniforms = static_cast<const double*>(uniforms.data_ptr());
  op.num_draws = num_draws;
  op.draw_temperature = draw_temperature;
  op.proposal_exponent = proposal_exponent;
  op.drawn = static_cast<int32_t*>(drawn.data_ptr());
  op.total = static_cast<double*>(total.data_ptr());
  op.ratios = needs_ratios ? static_cast<double*>(ratios.data_ptr()) : nullptr;
  const auto kernel = kernels().keep_logits;
  torch::stable::parallel_for(0, num_rows, 1,
                              [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
  return {top_ids, top_logits, log_z, drawn, total, ratios};
}

}  // namespace
}  // namespace mkd

STABLE_TORCH_LIBRARY_IMPL(mkd_fast, CPU, m) { m.impl("keep_logits", TORCH_BOX(&mkd::keep_logits)); }
