// dense_kd: the distillation loss of dense logits, its label and hidden-state terms, and the
// gradients of all three, in one pass over the rows. mkd_fast/losses/ops.py holds the schema,
// mkd_fast/losses/reference.py the meaning.
//
// With p = softmax(z_t / T_t) and q = softmax(z_s / T_s) over the V real columns, a row's loss is
//
//   kd_weight kd_scale D(p, q) + ce_weight CE(z_s, y) + hidden_weight H
//
// Gradient. Every D here is a sum over columns of F(p_v, q_v). With G_v = dF/dq_v and
// dq_u/dz_v = q_u ([u = v] - q_v) / T_s,
//
//   dD/dz_v = q_v (G_v - sum_u q_u G_u) / T_s,        dCE/dz_v = softmax(z_s)_v - [v = y]
//
// forward KL:  G = -p/q            so  dD/dz = (q - p) / T_s
// reverse KL:  G = log(q/p) + 1    so  dD/dz = q (log(q/p) - D) / T_s
// The others are in divergences.h, mixtures.h and alpha_beta.h. logit_mse is of the logits
// themselves: dD/dz = 2 (z_s - z_t) / V. A capped logit z' = cap tanh(z / cap), whose gradient is
// the above times 1 - (z' / cap)^2, is made where a row becomes floats: block.h.
//
// Sweeps. 1. Sums: the largest logits, Z_s, Z_t, the cross sums that give the KL family its value
// and the cross-entropy's own Z. 2. All but the KL family: value and sum q G, which need p and q
// normalised. 3. Gradient.
// A sweep goes block by block: 1,024 columns of both sides are converted to float in
// the first-level cache, their maximum is found on the way, and the exponentials are taken from
// there. The sums refer to the largest logit so far and are rescaled when it rises, so that the
// first sweep reads memory once. Sums run in float within a block and in double across blocks.
// t = (z - max) log2(e) / T is a whole number and a rest, of which the rest alone is rounded.
//
// Bytes a row, element sizes b_s and b_t: V (b_s + b_t) read and V b_s written, if the row pair
// still lies in a cache at the last sweep (256 KB at V = 32,000 in float32); that sweep runs
// backwards, so that what does is used. Operations a column: 2 exponentials (about 10
// instructions each for a whole register) in each sweep but the last, which is made of what the one
// before it kept (stored.h); one more for CE unless T_s is 1 or 2, where exp(z) is e_s or its
// square; one logarithm in the value sweep of a mixture. Forward KL reads each logit once:
// long_rows.h.
// Rows of at most 64 columns (small label sets) go many at a time: short_rows.h.
// A fresh gradient costs more in page faults than in arithmetic, hence memory that is kept between
// calls (gradients.cpp), and stores that pass the caches by.
//
// Saved for backward: the gradients, complete but for the incoming factor (scale.cpp).
//
// Rows left over when each thread has had as many as the others are split between them: the parts'
// sums are joined after each sweep.
//
// Not supported: float64 and double backward, which are eager.
#include <torch/csrc/stable/library.h>

#include "kd_op.h"

namespace mkd {
namespace {

Result dense_kd(Tensor student, Tensor teacher, std::optional<Tensor> labels,
                std::optional<Tensor> mask, std::optional<Tensor> num_tokens,
                std::vector<Tensor> student_hidden, std::vector<Tensor> teacher_hidden,
                std::vector<Tensor> teacher_scale, std::optional<Tensor> hidden_mask,
                std::string divergence, double alpha, double beta, double temperature,
                double teacher_temperature, double logit_scale, double teacher_logit_scale,
                double softcap, double teacher_softcap, double kd_scale, double kd_weight,
                double ce_weight, double hidden_weight, std::string hidden_distance,
                int64_t vocab_size, int64_t ignore_index, std::string reduction,
                bool needs_grad_student, bool needs_grad_hidden) {
  STD_TORCH_CHECK(
      teacher.dim() == 2 && teacher.size(0) == student.size(0) && teacher.size(1) >= vocab_size,
      "dense_kd: teacher must be [N, V] with the student's N and vocab_size columns.");
  teacher = with_contiguous_rows(teacher);
  KD op;
  op.teacher = matrix("teacher", teacher);
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
      kernels().dense_rows, kernels().dense_split_row);
}

}  // namespace
}  // namespace mkd

STABLE_TORCH_LIBRARY_IMPL(mkd_fast, CPU, m) { m.impl("dense_kd", TORCH_BOX(&mkd::dense_kd)); }
