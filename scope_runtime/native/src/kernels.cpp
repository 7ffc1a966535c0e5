#include "kernels.hpp"

#include <cmath>

namespace scope {

extern const Kernels kernels_generic;
#ifdef SCOPE_X86_VARIANTS
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// Chosen here and not by the dynamic linker (ifunc, target_clones): resolvers run before sanitizers are set up.
std::vector<const Kernels *> runnable_kernels() {
  std::vector<const Kernels *> out = {&kernels_generic};
#ifdef SCOPE_X86_VARIANTS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out.push_back(&kernels_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) out.push_back(&kernels_avx512);
#endif
  return out;
}

const Kernels & kernels() {
  static const Kernels & chosen = *runnable_kernels().back();
  return chosen;
}

float norm(const float * x, size_t n) {
  const float squares = kernels().sum_squares(x, n);
  if (squares > 1e-30f && squares < 1e38f) return std::sqrt(squares);
  double sum = 0.0;
  for (size_t i = 0; i < n; i++) sum += double{x[i]} * double{x[i]};
  return static_cast<float>(std::sqrt(sum));
}

}  // namespace scope
