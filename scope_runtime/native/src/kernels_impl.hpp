// The kernels' plain loops. Included once by each variant's file, which is compiled with its own flags: those allow
// reordering of sums (-fassociative-math), which is what lets the compiler vectorise them.
//
// Nothing of the standard library may be used here: an inline function compiled for AVX-512 could be the copy that the
// linker keeps for everybody.
#include "kernels.hpp"

namespace scope {
namespace {

// Four runs side by side, each with its own sums, so that additions need not wait for one another.
float dot(const float * a, const float * b, size_t n) {
  const size_t q = n / 4;
  const float *a1 = a + q, *a2 = a1 + q, *a3 = a2 + q;
  const float *b1 = b + q, *b2 = b1 + q, *b3 = b2 + q;
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (size_t i = 0; i < q; i++) {
    s0 += a[i] * b[i];
    s1 += a1[i] * b1[i];
    s2 += a2[i] * b2[i];
    s3 += a3[i] * b3[i];
  }
  for (size_t i = 4 * q; i < n; i++) s0 += a[i] * b[i];
  return (s0 + s1) + (s2 + s3);
}

float sum_squares(const float * x, size_t n) {
  return dot(x, x, n);
}

void add(const float * __restrict x, float * __restrict y, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = y[i] + x[i];
}

void axpy(float a, const float * __restrict x, float * __restrict y, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

void scaled(float a, const float * __restrict x, float * __restrict y, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] = a * x[i];
}

void scores(const float * rows, const float * bias, size_t n_rows, const float * h, size_t n, float * out) {
  for (size_t i = 0; i < n_rows; i++) out[i] = dot(rows + i * n, h, n) + bias[i];
}

// One run from end to end: so few bytes an element are limited by how they are fetched, which side by side is slower.
float dot_i8(const int8_t * a, const float * b, size_t n) {
  float s = 0;
  for (size_t i = 0; i < n; i++) s += static_cast<float>(a[i]) * b[i];
  return s;
}

void scores_i8(const int8_t * rows, const float * scale, const float * bias, size_t n_rows, const float * h, size_t n,
               float * out) {
  for (size_t i = 0; i < n_rows; i++) out[i] = scale[i] * dot_i8(rows + i * n, h, n) + bias[i];
}

}  // namespace
}  // namespace scope
