// The system clears every page that it hands out, and for a large gradient that takes longer than
// computing it. The C library returns freed blocks of 32 MB and more, and smaller ones as soon as
// they lie at the end of its heap; so they are kept here, up to a limit, when their tensor is
// freed.
#include "gradients.h"

#include <mutex>
#include <vector>

#include <torch/csrc/stable/library.h>

#if defined(__linux__)
#include <sys/mman.h>

// Of torch 2.11 and later; null where an older one is running.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* result,
    int32_t layout, const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context), void* deleter_context);
#endif

namespace mkd {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallestKept = size_t{4} << 20;
constexpr size_t kMostKept = size_t{1} << 30;

// Ask for huge pages, whole ones inside the block; a refusal changes nothing. 64 MB are 16,000
// page faults otherwise.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t num_bytes) {
#if defined(__linux__)
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (start + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (start + num_bytes) & ~(kHugePage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

#if defined(__linux__)
struct Block {
  void* data;
  size_t num_bytes;  // of whole huge pages
};

// Straight from the system, so that what is given back is gone; null where there is none.
void* huge_pages(size_t num_bytes) {
  void* const mapped = mmap(nullptr, num_bytes + kHugePage, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(mapped);
  const size_t before = -reinterpret_cast<uintptr_t>(begin) % kHugePage;
  if (before) munmap(begin, before);
  if (before != kHugePage) munmap(begin + before + num_bytes, kHugePage - before);
  prefer_huge_pages(begin + before, num_bytes);
  return begin + before;
}

void free_huge_pages(Block block) { munmap(block.data, block.num_bytes); }

// Blocks whose tensors are gone, the oldest first.
class KeptBlocks {
 public:
  // A kept block of this size, or a new one.
  void* take(size_t num_bytes) {
    {
      const std::lock_guard lock(mutex_);
      for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
        if (block->num_bytes != num_bytes) continue;
        void* const data = block->data;
        total_bytes_ -= num_bytes;
        blocks_.erase(std::next(block).base());
        return data;
      }
    }
    void* const data = huge_pages(num_bytes);
    STD_TORCH_CHECK(data, "kd_loss: the gradient needs ", num_bytes,
                    " bytes, got none of them. Pass fewer tokens at a time.");
    return data;
  }

  void give_back(Block block) {
    if (block.num_bytes > kMostKept) return free_huge_pages(block);
    const std::lock_guard lock(mutex_);
    blocks_.push_back(block);
    total_bytes_ += block.num_bytes;
    shrink_to(kMostKept);
  }

  int64_t release() {
    const std::lock_guard lock(mutex_);
    const size_t before = total_bytes_;
    shrink_to(0);
    return static_cast<int64_t>(before);
  }

 private:
  void shrink_to(size_t most_bytes) {
    auto block = blocks_.begin();
    for (; total_bytes_ > most_bytes; ++block) {
      total_bytes_ -= block->num_bytes;
      free_huge_pages(*block);
    }
    blocks_.erase(blocks_.begin(), block);
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t total_bytes_ = 0;
};

KeptBlocks& kept_blocks() {
  static KeptBlocks& blocks = *new KeptBlocks;  // outlives the last tensor
  return blocks;
}

Tensor tensor_of_kept_block(ScalarType dtype, std::initializer_list<int64_t> shape,
                            size_t num_bytes) {
  num_bytes = (num_bytes + kHugePage - 1) / kHugePage * kHugePage;
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size() - 1; d > 0; --d) {
    strides[d - 1] = strides[d] * std::data(shape)[d];
  }
  void* const data = kept_blocks().take(num_bytes);
  const auto give_back = [](void* block, void* size) {
    kept_blocks().give_back({block, reinterpret_cast<uintptr_t>(size)});
  };
  const auto shim_dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(torch_from_blob(
      data, static_cast<int64_t>(shape.size()), std::data(shape), strides.data(), 0, shim_dtype,
      aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0, give_back,
      reinterpret_cast<void*>(num_bytes)));
  return Tensor(handle);
}

int64_t release_kept_memory() { return kept_blocks().release(); }
#else
int64_t release_kept_memory() { return 0; }
#endif

}  // namespace

Tensor new_gradient(const Tensor& like, std::initializer_list<int64_t> shape) {
  size_t num_bytes = dtype_of("gradient", like) == DType::kFloat32 ? 4 : 2;
  for (const int64_t size : shape) num_bytes *= static_cast<size_t>(size);
#if defined(__linux__)
  if (num_bytes >= kSmallestKept && torch_from_blob) {
    return tensor_of_kept_block(like.scalar_type(), shape, num_bytes);
  }
#endif
  const Tensor grad = torch::stable::new_empty(like, shape);
  prefer_huge_pages(grad.data_ptr(), num_bytes);
  return grad;
}

}  // namespace mkd

STABLE_TORCH_LIBRARY_FRAGMENT(mkd_fast, m) { m.def("release_kept_memory() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(mkd_fast, CompositeExplicitAutograd, m) {
  m.impl("release_kept_memory", TORCH_BOX(&mkd::release_kept_memory));
}
