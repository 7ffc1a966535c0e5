// The few loops where time goes, compiled for several instruction sets and chosen once for the CPU that runs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace scope {

struct Kernels {
  const char * name;
  float (*dot)(const float * a, const float * b, size_t n);
  float (*sum_squares)(const float * x, size_t n);
  /// y += x. One addition an element, in no other form, so that it gives the bits of llama.cpp's control vector.
  void (*add)(const float * x, float * y, size_t n);
  /// y += a * x
  void (*axpy)(float a, const float * x, float * y, size_t n);
  /// y = a * x
  void (*scaled)(float a, const float * x, float * y, size_t n);
  /// out[i] = dot(row i, h) + bias[i]
  void (*scores)(const float * rows, const float * bias, size_t n_rows, const float * h, size_t n, float * out);
  /// The same of rows in 8-bit whole numbers: out[i] = scale[i] * dot(row i, h) + bias[i]
  void (*scores_i8)(const int8_t * rows, const float * scale, const float * bias, size_t n_rows, const float * h,
                    size_t n, float * out);
};

/// The best variant for this CPU.
const Kernels & kernels();
/// Every variant that this CPU can run, for the tests.
std::vector<const Kernels *> runnable_kernels();

/// ||x||, also where the squares overflow or underflow an F32.
float norm(const float * x, size_t n);

}  // namespace scope
