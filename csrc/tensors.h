// What the ops read off stable-ABI tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "kd.h"

namespace mkd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "mkd_fast: ", name,
                      " must be float32, bfloat16 or float16. Pass impl=\"eager\" for others.");
  }
}

// The tensor itself where its last dimension is contiguous, as kernels need it, else a copy.
inline Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

// Teachers' hidden states may be kept in eight bits; nothing else is.
inline DType hidden_dtype_of(const char* name, const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Char ? DType::kInt8 : dtype_of(name, tensor);
}

inline Matrix matrix(const char* name, const Tensor& tensor) {
  return {static_cast<char*>(tensor.data_ptr()), dtype_of(name, tensor), tensor.stride(0)};
}

}  // namespace mkd
