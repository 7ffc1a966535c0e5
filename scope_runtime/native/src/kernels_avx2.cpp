#include "kernels_impl.hpp"

namespace scope {

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = {"avx2", dot, sum_squares, add, axpy, scaled, scores, scores_i8};

}  // namespace scope
