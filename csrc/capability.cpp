// Which instruction set to run, chosen once.
#include <cstdlib>
#include <string>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include "kd.h"

namespace mkd {

namespace plain {
extern const Kernels kernels;
}
#if defined(MKD_HAS_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

const Kernels& choose() {
  const char* variable = std::getenv("MKD_FAST_CPU_CAPABILITY");
  const std::string wanted = variable ? variable : "";
  std::string available;
#if defined(MKD_HAS_X86)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (wanted.empty() || wanted == "avx512")) return avx512::kernels;
  if (has_avx2 && (wanted.empty() || wanted == "avx2")) return avx2::kernels;
  available = std::string(has_avx512 ? "avx512, " : "") + (has_avx2 ? "avx2, " : "");
#endif
  STD_TORCH_CHECK(wanted.empty() || wanted == "plain",
                  "cpu_capability: MKD_FAST_CPU_CAPABILITY must be one that this machine has, ",
                  available, "plain, got ", wanted, ". Unset it for the best one.");
  return plain::kernels;
}

std::string cpu_capability() { return kernels().name; }

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace mkd

STABLE_TORCH_LIBRARY_FRAGMENT(mkd_fast, m) { m.def("cpu_capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(mkd_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&mkd::cpu_capability));
}
