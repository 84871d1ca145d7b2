// scale_: multiply rows in place, and touch nothing where the factor is 1, which is what backward
// is handed for a scalar loss.
#include <torch/csrc/stable/library.h>

#include "tensors.h"

namespace mkd {
namespace {

constexpr int64_t kElementsPerTask = 32768;

void scale_(Tensor grad, Tensor scale) {
  if (grad.numel() == 0) return;
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float,
                  "scale_: scale must be float32, got another dtype. Convert it first.");
  STD_TORCH_CHECK(scale.dim() == 0 || scale.size(0) == grad.size(0),
                  "scale_: scale must have one entry or one for each of the ", grad.size(0),
                  " rows, got ", scale.numel(), ". Expand it first.");
  const bool has_plain_rows = grad.dim() == 2 && (grad.size(1) == 1 || grad.stride(1) == 1);
  STD_TORCH_CHECK(has_plain_rows || grad.is_contiguous(),
                  "scale_: grad must be contiguous within a row, got other strides. Pass the "
                  "gradient as dense_kd returned it.");
  const Matrix rows = matrix("grad", grad);
  const int64_t num_rows = grad.size(0), num_columns = grad.numel() / num_rows;
  const float* factors = static_cast<const float*>(scale.data_ptr());
  if (scale.dim() == 0 && *factors == 1.0f) return;  // before threads are woken
  const int64_t stride = scale.dim() == 0 ? 0 : scale.stride(0);
  const auto scale_row = kernels().scale;
  torch::stable::parallel_for(0, num_rows, kElementsPerTask / num_columns + 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t n = begin; n < end; ++n) {
                                  const float factor = factors[n * stride];
                                  if (factor != 1.0f)
                                    scale_row(rows.dtype, rows.row(n), num_columns, factor);
                                }
                              });
}

}  // namespace
}  // namespace mkd

STABLE_TORCH_LIBRARY_IMPL(mkd_fast, CPU, m) { m.impl("scale_", TORCH_BOX(&mkd::scale_)); }
