// sparse_kd: the distillation loss of a teacher that left K entries a token, with its label and
// hidden-state terms and the gradients of all three. mkd_fast/losses/ops.py holds the schema,
// mkd_fast/losses/reference.py the meaning.
//
// Top-k. The teacher's probabilities of the kept ids are p_k = exp(z_k / T_t - log_z), of all
// others r = 1 - sum p_k; the student's are q_k and q_out, the sum of q_v over what lies outside.
//   bucket               K + 1 events, the last being (r, q_out)
//   renormalize, drop    p_v = 0 outside, where F(0, q) is a multiple of q: one event too,
//                        (0, q_out), but for alpha_beta; renormalize divides p_k by their sum
//   uniform              p_v = r / (V - K) outside, an event each
// A sample. D = -sum w_k log q_k, whose pulls are -w_k, and nothing pulls outside.
//
// Gradient. With pull = q dF/dq = dF / d log q of each event, and G_out = pull_out / q_out where
// all that lies outside is one event,
//
//   dD/dz_k = (pull_k - q_k C) / T_s,  dD/dz_v = q_v (G_out - C) / T_s outside,  C = sum of pulls
//
// so a column outside costs one exponential and one product, whatever the divergence. For uniform
// and forward KL a constant is added; other divergences of uniform tails, and alpha_beta of
// renormalize and drop, make each column's pull by divergences.h.
//
// Sweeps. 1. The largest logit, Z and the cross-entropy's own Z, block by block as in dense_kd.cpp,
// but of the columns outside alone: the kept logits are taken out of each block on the way. So
// q_out is a sum of its own, exact even where the kept ids have all of the student's probability
// but 1e-30, and no 1 - sum q_k cancels. The K + 1 events are then worked out in double. 2. Only
// where columns outside are events of their own: their values and pulls. 3. The gradient,
// backwards; those of the kept ids replace theirs in the block before it is written. It is made of
// the first sweep's exponentials, which stay in a scratch row of the thread (4 bytes a column, in a
// second-level cache), unless softcap, events of their own or a label's own exponentials need the
// logits again.
//
// Bytes a row, element size b_s: V b_s read and V b_s written, and K ids and values. No [N, V]
// tensor but the gradient. Operations: 1 exponential a column, 4 with a label at a T_s other than 1
// or 2, and two or three scalar exponentials an id.
//
// Saved for backward: the gradients, complete but for the incoming factor (scale.cpp).
//
// Not supported: repeated ids within a token, float64, logit_mse, double backward.
#include <torch/csrc/stable/library.h>

#include "kd_op.h"

namespace mkd {
namespace {

Tail tail_of(const std::string& name) {
  if (name == "bucket") return Tail::kBucket;
  if (name == "renormalize") return Tail::kRenormalize;
  if (name == "drop") return Tail::kDrop;
  if (name == "uniform") return Tail::kUniform;
  if (name == "sampled") return Tail::kSampled;
  STD_TORCH_CHECK(name == "packed",
                  "sparse_kd: tail must be bucket, renormalize, drop, uniform, sampled or packed, "
                  "got ",
                  name, ".");
  return Tail::kPacked;
}

// What the Python side has promised, checked again where a breach would read foreign memory.
void check_tensors(const Tensor& student, const Tensor& ids, const std::optional<Tensor>& values,
                   const std::optional<Tensor>& log_z, Tail tail) {
  const bool is_packed = tail == Tail::kPacked, is_sample = is_packed || tail == Tail::kSampled;
  const int64_t num_rows = student.size(0);
  const auto dtype = ids.scalar_type();
  STD_TORCH_CHECK(
      ids.size(0) == num_rows &&
          (is_packed ? ids.dim() == 3 && ids.size(2) == 3 && dtype == ScalarType::Byte
                     : ids.dim() == 2 && (dtype == ScalarType::Int || dtype == ScalarType::Long)),
      "sparse_kd: ids must be int32 or int64 [N, K], or packed entries uint8 [N, K, 3].");
  STD_TORCH_CHECK(is_packed != values.has_value() &&
                      (is_packed || (values->dim() == 2 && values->size(0) == num_rows &&
                                     values->size(1) == ids.size(1))),
                  "sparse_kd: values must be [N, K], as ids; packed entries have none.");
  STD_TORCH_CHECK(is_sample != log_z.has_value() &&
                      (is_sample || (log_z->dim() == 1 && log_z->size(0) == num_rows &&
                                     log_z->scalar_type() == ScalarType::Float)),
                  "sparse_kd: log_z must be float32 [N]; a sample has none.");
}

void check_options(Tail tail, int64_t id_bits, int64_t num_draws, const std::string& divergence) {
  const bool is_packed = tail == Tail::kPacked;
  STD_TORCH_CHECK(!is_packed || (0 < id_bits && id_bits < 24),
                  "sparse_kd: id_bits must lie in [1, 23], got ", id_bits, ".");
  STD_TORCH_CHECK(!is_packed || num_draws >= 1, "sparse_kd: num_draws must be at least 1, got ",
                  num_draws, ".");
  STD_TORCH_CHECK(divergence != "logit_mse",
                  "sparse_kd: the divergence must be one of distributions, got logit_mse.");
  STD_TORCH_CHECK((!is_packed && tail != Tail::kSampled) || divergence == "forward_kl",
                  "sparse_kd: the divergence must be forward_kl for a sample, got ", divergence,
                  ".");
}

Result sparse_kd(Tensor student, Tensor ids, std::optional<Tensor> values,
                 std::optional<Tensor> log_z, std::optional<Tensor> labels,
                 std::optional<Tensor> mask, std::optional<Tensor> num_tokens,
                 std::vector<Tensor> student_hidden, std::vector<Tensor> teacher_hidden,
                 std::vector<Tensor> teacher_scale, std::optional<Tensor> hidden_mask,
                 std::string tail, int64_t id_bits, int64_t num_draws, std::string divergence,
                 double alpha, double beta, double temperature, double teacher_temperature,
                 double logit_scale, double teacher_logit_scale, double softcap,
                 double teacher_softcap, double kd_scale, double kd_weight, double ce_weight,
                 double hidden_weight, std::string hidden_distance, int64_t vocab_size,
                 int64_t ignore_index, std::string reduction, bool needs_grad_student,
                 bool needs_grad_hidden) {
  KD op;
  Sparse& teacher = op.sparse;
  teacher.tail = tail_of(tail);
  check_tensors(student, ids, values, log_z, teacher.tail);
  check_options(teacher.tail, id_bits, num_draws, divergence);
  const bool is_packed = teacher.tail == Tail::kPacked;
  ids = is_packed ? torch::stable::contiguous(ids) : with_contiguous_rows(ids);
  teacher.num_kept = ids.size(1);
  teacher.ids = static_cast<const char*>(ids.data_ptr());
  teacher.id_bytes = is_packed ? 3 : ids.element_size();
  teacher.id_row_bytes = ids.stride(0) * static_cast<int64_t>(ids.element_size());
  if (values) {
    values = with_contiguous_rows(*values);
    teacher.values = matrix("values", *values);
  }
  if (log_z) teacher.log_z = {static_cast<const float*>(log_z->data_ptr()), log_z->stride(0), 0};
  teacher.id_bits = id_bits;
  teacher.num_draws = num_draws;
  return run(
      op,
      {student,
       labels,
       mask,
       num_tokens,
       student_hidden,
       teacher_hidden,
       teacher_scale,
       hidden_mask,
       {divergence, alpha, beta, temperature, teacher_temperature, logit_scale, teacher_logit_scale,
        softcap, teacher_softcap, kd_scale, kd_weight, ce_weight, hidden_weight, hidden_distance,
        vocab_size, ignore_index, reduction, needs_grad_student, needs_grad_hidden}},
      kernels().sparse_rows);
}

}  // namespace
}  // namespace mkd

STABLE_TORCH_LIBRARY_IMPL(mkd_fast, CPU, m) { m.impl("sparse_kd", TORCH_BOX(&mkd::sparse_kd)); }
