#include "kernels_impl.hpp"

namespace scope {

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = {"avx512", dot, sum_squares, add, axpy, scaled, scores, scores_i8};

}  // namespace scope
