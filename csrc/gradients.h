// Memory for gradients, kept from step to step.
#pragma once

#include <initializer_list>

#include "tensors.h"

namespace mkd {

// An uninitialised contiguous tensor of this shape, with the dtype of `like`.
Tensor new_gradient(const Tensor& like, std::initializer_list<int64_t> shape);

}  // namespace mkd
