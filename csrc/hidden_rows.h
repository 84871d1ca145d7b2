// The hidden-state term of the loss and its gradient.
//
//   H = mean over layers l and counted positions of d(h_s, h_t)
//
// mse:    d = mean over width of (h_s - h_t)^2, and with c = 1 / (L * P_counted)
//         dH/dh_s = 2 c (h_s - h_t) / D_l
// cosine: d = 1 - k,  k = (h_s . h_t) / (|h_s| |h_t|),  lengths at least 1e-8
//         dH/dh_s = c (k h_s / |h_s|^2 - h_t / (|h_s| |h_t|)),  without the first part where
//         |h_s| is held at 1e-8
//
// mse reads both rows once and writes the gradient once, from register to register. cosine sweeps
// twice over a row pair, the second time where it lies in the first-level cache. Teachers in eight
// bits are decoded as they are loaded: one byte an element and four a row.
//
// Layers are taken one after another, so that neighbouring rows follow each other in memory, and
// what is read ahead is what comes next. The gradient is not read again before the optimizer's
// turn: large ones are written past the caches, which saves reading the lines they replace.
#pragma once

#include <cmath>

#include "block.h"

namespace mkd::MKD_ISA {

constexpr double kSmallestSquare = 1e-16;  // of a length in the cosine

// One position of a layer. grad is null where no gradient is wanted.
template <class S, class T>
struct RowPair {
  const S* student;
  const T* teacher;
  S* grad;
  float scale;  // of the teacher's int8 states
  int64_t width;
  bool past_caches;

  // use(i, count, s, t) for the registers of [begin, end), the lanes past count being 0.
  template <class Use>
  void each(int64_t begin, int64_t end, Use use) const {
    int64_t i = begin;
    for (; i + Vec::kLanes <= end; i += Vec::kLanes) {
      __builtin_prefetch(reinterpret_cast<const char*>(student + i) + kFetchAheadBytes);
      __builtin_prefetch(reinterpret_cast<const char*>(teacher + i) + kFetchAheadBytes);
      use(i, Vec::kLanes, load(student + i), scaled(load(teacher + i)));
    }
    const int rest = static_cast<int>(end - i);
    if (rest > 0) use(i, rest, load(student + i, rest), scaled(load(teacher + i, rest)));
  }

  Vec scaled(Vec states) const {
    if constexpr (sizeof(T) == 1) return states * all(scale);
    return states;
  }

  void write(int64_t i, int count, Vec value) const {
    if (count < Vec::kLanes) {
      store(grad + i, value, count);
    } else if (past_caches) {
      stream(grad + i, value);
    } else {
      store(grad + i, value);
    }
  }
};

// The mean of squares; grad = weight * its gradient.
template <class S, class T>
inline double squared_error(const RowPair<S, T>& pair, double weight) {
  const Vec factor = all(static_cast<float>(2.0 * weight / pair.width));
  double total = 0.0;
  for (int64_t begin = 0; begin < pair.width; begin += kBlock) {  // in float within a block
    Vec squares = all(0.0f);
    const int64_t end = begin + kBlock < pair.width ? begin + kBlock : pair.width;
    pair.each(begin, end, [&](int64_t i, int count, Vec s, Vec t) {
      const Vec error = s - t;
      squares = fma(error, error, squares);
      if (pair.grad) pair.write(i, count, error * factor);
    });
    total += sum(squares);
  }
  return total / pair.width;
}

// 1 - cos; grad = weight * its gradient.
template <class S, class T>
inline double one_minus_cosine(const RowPair<S, T>& pair, double weight) {
  double dot = 0.0, square_s = 0.0, square_t = 0.0;
  for (int64_t begin = 0; begin < pair.width; begin += kBlock) {
    Vec dots = all(0.0f), squares_s = dots, squares_t = dots;
    const int64_t end = begin + kBlock < pair.width ? begin + kBlock : pair.width;
    pair.each(begin, end, [&](int64_t, int, Vec s, Vec t) {
      dots = fma(s, t, dots);
      squares_s = fma(s, s, squares_s);
      squares_t = fma(t, t, squares_t);
    });
    dot += sum(dots);
    square_s += sum(squares_s);
    square_t += sum(squares_t);
  }
  const auto held = [](double square) {
    return square < kSmallestSquare ? kSmallestSquare : square;
  };
  const double inverse = 1.0 / std::sqrt(held(square_s) * held(square_t));
  if (pair.grad) {
    const bool is_held = square_s < kSmallestSquare;
    const Vec from_s = all(static_cast<float>(is_held ? 0.0 : weight * dot * inverse / square_s));
    const Vec from_t = all(static_cast<float>(weight * inverse));
    pair.each(0, pair.width, [&](int64_t i, int count, Vec s, Vec t) {
      pair.write(i, count, s * from_s - t * from_t);
    });
  }
  return 1.0 - dot * inverse;
}

// 1 / how many positions of a token count.
inline double share_of_position(const KD& op, int64_t n) {
  int64_t num_counted = op.num_positions;
  if (op.hidden_mask) {
    num_counted = 0;
    for (int64_t p = 0; p < op.num_positions; ++p) num_counted += op.hidden_mask(n, p);
  }
  return 1.0 / (num_counted > 0 ? num_counted : 1);
}

// Adds one layer's part to the terms of those tokens of a task that count.
template <class S, class T>
void layer_rows(const KD& op, const HiddenLayer& layer, const Task& task) {
  const bool is_aligned =
      (reinterpret_cast<uintptr_t>(layer.grad.data) | (layer.width * sizeof(S))) %
          (Vec::kLanes * sizeof(S)) ==
      0;
  for (int64_t n = task.begin; n < task.end; ++n) {
    if (!op.counts(n)) continue;
    const double share = share_of_position(op, n) / static_cast<double>(op.num_layers);
    const double weight = share * op.hidden_weight * op.row_weight;
    double error = 0.0;
    for (int64_t p = 0; p < op.num_positions; ++p) {
      S* grad = reinterpret_cast<S*>(layer.grad.data);
      if (grad) grad += (n * op.num_positions + p) * layer.width;
      if (op.hidden_mask && !op.hidden_mask(n, p)) {
        if (grad) __builtin_memset(grad, 0, layer.width * sizeof(S));
        continue;
      }
      const RowPair<S, T> pair = {
          reinterpret_cast<const S*>(layer.student.row(n)) + p * layer.student_position_stride,
          reinterpret_cast<const T*>(layer.teacher.row(n)) + p * layer.teacher_position_stride,
          grad,
          layer.teacher_scale ? layer.teacher_scale(n, p) : 1.0f,
          layer.width,
          op.stream_grad_hidden && is_aligned};
      error += op.hidden_is_cosine ? one_minus_cosine(pair, weight) : squared_error(pair, weight);
    }
    task.terms_of(n).hidden += error * share;
  }
}

template <class S>
void layer_rows(const KD& op, const HiddenLayer& layer, const Task& task) {
  switch (layer.teacher.dtype) {
    case DType::kFloat32:
      return layer_rows<S, float>(op, layer, task);
    case DType::kBFloat16:
      return layer_rows<S, BFloat16>(op, layer, task);
    case DType::kFloat16:
      return layer_rows<S, Float16>(op, layer, task);
    case DType::kInt8:
      return layer_rows<S, int8_t>(op, layer, task);
  }
}

// The hidden terms and the gradients of those tokens of a task that count.
inline void hidden_rows(const KD& op, const Task& task) {
  for (int64_t l = 0; l < op.num_layers; ++l) {
    const HiddenLayer& layer = op.layers[l];
    switch (layer.student.dtype) {
      case DType::kBFloat16:
        layer_rows<BFloat16>(op, layer, task);
        break;
      case DType::kFloat16:
        layer_rows<Float16>(op, layer, task);
        break;
      default:
        layer_rows<float>(op, layer, task);
    }
  }
  if (op.stream_grad_hidden) finish_streams();
}

}  // namespace mkd::MKD_ISA
