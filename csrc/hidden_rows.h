// The hidden-state error of one token and its gradient.
//
//   H = mean over layers l, counted positions and width of (h_s - h_t)^2
//   dH/dh_s = 2 (h_s - h_t) / (L * P_counted * D_l)
//
// Both rows are read once and the gradient is written once; no sweep follows.
#pragma once

#include "block.h"

namespace mkd::MKD_ISA {

// Sum of (student - teacher)^2 over one row; grad = factor * (student - teacher) where not null.
inline double squared_error(const HiddenLayer& layer, const char* student, const char* teacher,
                            char* grad, float factor) {
  alignas(64) float s[kBlock], t[kBlock];
  double total = 0.0;
  for (int64_t begin = 0; begin < layer.width; begin += kBlock) {
    const int64_t rest = layer.width - begin;
    const int size = rest < kBlock ? static_cast<int>(rest) : kBlock;
    load_block(layer.student.dtype, student, begin, size, Transform{}, 0.0f, s);
    load_block(layer.teacher.dtype, teacher, begin, size, Transform{}, 0.0f, t);
    Vec squares = all(0.0f);
    for (int i = 0; i < size; i += Vec::kLanes) {
      const Vec error = load(s + i) - load(t + i);
      squares = fma(error, error, squares);
      store(s + i, error * all(factor));
    }
    total += sum(squares);
    if (grad) store_block(layer.grad.dtype, grad, begin, size, s, false);
  }
  return total;
}

inline double hidden_row(const KD& op, int64_t n) {
  int64_t num_counted = op.num_positions;
  if (op.hidden_mask) {
    num_counted = 0;
    for (int64_t p = 0; p < op.num_positions; ++p) num_counted += op.hidden_mask(n, p);
  }
  double error = 0.0;
  for (int64_t l = 0; l < op.num_layers; ++l) {
    const HiddenLayer& layer = op.layers[l];
    const double share = 1.0 / (static_cast<double>(op.num_layers) * layer.width *
                                (num_counted > 0 ? num_counted : 1));
    const float factor = static_cast<float>(2.0 * share * op.hidden_weight * op.row_weight);
    double layer_error = 0.0;
    for (int64_t p = 0; p < op.num_positions; ++p) {
      const int64_t element = layer.grad.element_size();
      char* grad = layer.grad.data ? layer.grad.row(n) + p * layer.width * element : nullptr;
      if (op.hidden_mask && !op.hidden_mask(n, p)) {
        if (grad) __builtin_memset(grad, 0, layer.width * element);
        continue;
      }
      const int64_t student_offset =
          p * layer.student_position_stride * layer.student.element_size();
      const int64_t teacher_offset =
          p * layer.teacher_position_stride * layer.teacher.element_size();
      layer_error += squared_error(layer, layer.student.row(n) + student_offset,
                                   layer.teacher.row(n) + teacher_offset, grad, factor);
    }
    error += layer_error * share;
  }
  return error;
}

}  // namespace mkd::MKD_ISA
