// Blocks: a few kilobytes of a row, as floats in the first-level cache.
//
// All arithmetic works on blocks. Only the two functions here know about dtypes, tails and
// alignment: a block is read once, converted and scaled, and padded to whole registers.
#pragma once

#include "vec.h"

namespace mkd::MKD_ISA {

constexpr int kBlock = 1024;
// How far ahead of its arithmetic a row is fetched (2 to 8 KB measured alike): the hardware's own
// prefetching stops at pages, and where a block is only loaded there is nothing to wait behind.
constexpr int kFetchAheadBytes = 4096;

// What becomes of a stored logit z before any temperature: z' = cap * tanh(scale * z / cap), where
// cap 0 is none. -inf, a probability of zero, stays -inf.
struct Transform {
  float scale = 1.0f;
  float softcap = 0.0f;

  Vec capped(Vec scaled) const {
    const Vec cap = all(softcap);
    return where(above_nothing(scaled), cap * tanh(scaled / cap), scaled);
  }

  // dz'/d(scale z) = 1 - (z'/cap)^2, without its cancellation; 0 where z' is -inf.
  Vec slope(Vec z) const {
    const Vec cap = all(softcap);
    return where(above_nothing(z), ((cap - z) / cap) * ((cap + z) / cap));
  }

 private:
  static Mask above_nothing(Vec z) { return not_below(z, all(-3.0e38f)); }  // and NaN is
};

// block[i] = scale * row[begin + i], padded to whole registers with `padding`; the largest of it.
template <class T>
inline float load_block_of(const T* from, int size, float scale, float padding, float* block) {
  const Vec factor = all(scale);
  Vec most = all(-__builtin_inff());
  int i = 0;
  for (; i + Vec::kLanes <= size; i += Vec::kLanes) {
    const Vec x = load(from + i) * factor;
    most = max(x, most);  // a NaN is passed over here, and found in the sums
    store(block + i, x);
  }
  if (i < size) {
    const Vec x = where(first_lanes(size - i), load(from + i, size - i) * factor, all(padding));
    most = max(x, most);
    store(block + i, x);
  }
  return largest(most);
}

// act(a number of the type that dtype names).
template <class Act>
inline void with_type(DType dtype, Act act) {
  switch (dtype) {
    case DType::kBFloat16:
      return act(BFloat16{});
    case DType::kFloat16:
      return act(Float16{});
    default:
      return act(0.0f);
  }
}

inline float load_scaled(DType dtype, const void* row, int64_t begin, int size, float scale,
                         float padding, float* block) {
  switch (dtype) {
    case DType::kBFloat16:
      return load_block_of(static_cast<const BFloat16*>(row) + begin, size, scale, padding, block);
    case DType::kFloat16:
      return load_block_of(static_cast<const Float16*>(row) + begin, size, scale, padding, block);
    default:
      return load_block_of(static_cast<const float*>(row) + begin, size, scale, padding, block);
  }
}

// The same, transformed; `padding` too.
inline float load_block(DType dtype, const void* row, int64_t begin, int size,
                        const Transform& transform, float padding, float* block) {
  const float most = load_scaled(dtype, row, begin, size, transform.scale, padding, block);
  if (transform.softcap == 0.0f) return most;
  for (int i = 0; i < size; i += Vec::kLanes) store(block + i, transform.capped(load(block + i)));
  return largest(transform.capped(all(most)));  // a cap keeps the order
}

// How far a row is from where that many columns of it are aligned.
inline int64_t columns_to_alignment(const char* row, int64_t element, int columns = Vec::kLanes) {
  const int64_t line = columns * element;
  return (line - static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % line)) % line / element;
}

// Columns past the vocabulary have no gradient.
inline void clear_padding(const KD& op, char* grad) {
  const int64_t element = op.grad.element_size();
  __builtin_memset(grad + op.num_columns * element, 0,
                   (op.num_grad_columns - op.num_columns) * element);
}

template <class T>
inline void store_block_of(T* to, int size, const float* block, bool past_caches) {
  int i = 0;
  if (past_caches) {
    for (; i + Vec::kLanes <= size; i += Vec::kLanes) stream(to + i, load(block + i));
  }
  for (; i + Vec::kLanes <= size; i += Vec::kLanes) store(to + i, load(block + i));
  if (i < size) store(to + i, load(block + i), size - i);
}

// row[begin + i] = block[i], rounded to nearest even. Past the caches only where that is aligned.
inline void store_block(DType dtype, void* row, int64_t begin, int size, const float* block,
                        bool past_caches) {
  const int64_t element = dtype == DType::kFloat32 ? 4 : 2;
  void* to = static_cast<char*>(row) + begin * element;
  past_caches = past_caches && reinterpret_cast<uintptr_t>(to) % (Vec::kLanes * element) == 0;
  switch (dtype) {
    case DType::kBFloat16:
      return store_block_of(static_cast<BFloat16*>(to), size, block, past_caches);
    case DType::kFloat16:
      return store_block_of(static_cast<Float16*>(to), size, block, past_caches);
    default:
      return store_block_of(static_cast<float*>(to), size, block, past_caches);
  }
}

}  // namespace mkd::MKD_ISA
