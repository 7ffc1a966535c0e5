#include "kernels_impl.hpp"

#ifdef __aarch64__
#define SCOPE_GENERIC_NAME "neon"  // part of every aarch64 CPU: the compiler uses it without being asked
#else
#define SCOPE_GENERIC_NAME "generic"
#endif

namespace scope {

extern const Kernels kernels_generic;
const Kernels kernels_generic = {SCOPE_GENERIC_NAME, dot, sum_squares, add, axpy, scaled, scores, scores_i8};

}  // namespace scope
