#include "gradients.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mkd {
namespace {

// Ask for huge pages, whole ones inside the tensor; a refusal changes nothing. A fresh gradient of
// 64 MB otherwise costs 16,000 page faults, which take longer than computing it.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t num_bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (start + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (start + num_bytes) & ~(kHugePage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

Tensor new_gradient(const Tensor& like, std::initializer_list<int64_t> shape) {
  const Tensor grad = torch::stable::new_empty(like, shape);
  prefer_huge_pages(grad.data_ptr(), grad.numel() * static_cast<int64_t>(grad.element_size()));
  return grad;
}

}  // namespace mkd
