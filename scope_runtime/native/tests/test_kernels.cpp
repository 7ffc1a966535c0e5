// Every kernel variant that this CPU has, against sums in F64.
#include <cstring>

#include "check.hpp"
#include "kernels.hpp"
#include "spec.hpp"

using namespace test;

namespace {

const size_t sizes[] = {0, 1, 2, 3, 4, 7, 15, 16, 17, 63, 64, 65, 100, 255, 256, 1000, 1024, 4096, 5001};

double dot64(const Row & a, const Row & b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++) sum += double{a[i]} * double{b[i]};
  return sum;
}

}  // namespace

TEST(kernels, match_double_precision) {
  Random random(3);
  for (const scope::Kernels * k : scope::runnable_kernels()) {
    for (const size_t n : sizes) {
      const Row a = random.row(n), b = random.row(n);
      const double scale = std::sqrt(dot64(a, a) * dot64(b, b)) + 1e-6;
      CHECK(std::fabs(double{k->dot(a.data(), b.data(), n)} - dot64(a, b)) <= 1e-6 * scale);
      CHECK_NEAR(double{k->sum_squares(a.data(), n)}, dot64(a, a), 1e-6);

      Row y = b;
      k->axpy(0.75f, a.data(), y.data(), n);
      for (size_t i = 0; i < n; i++) CHECK_NEAR(double{y[i]}, double{b[i]} + 0.75 * double{a[i]}, 1e-7);
      k->scaled(-1.25f, a.data(), y.data(), n);
      for (size_t i = 0; i < n; i++) CHECK(y[i] == -1.25f * a[i]);

      const Row rows = random.row(5 * n), bias = random.row(5);
      Row out(5);
      k->scores(rows.data(), bias.data(), 5, a.data(), n, out.data());
      for (size_t r = 0; r < 5; r++) CHECK(out[r] == k->dot(rows.data() + r * n, a.data(), n) + bias[r]);
    }
  }
}

TEST(kernels, add_is_one_addition_an_element) {
  Random random(4);
  for (const scope::Kernels * k : scope::runnable_kernels()) {
    for (const size_t n : sizes) {
      Row x = random.row(n, 1000.0f), y = random.row(n);
      if (n > 3) {
        x[0] = y[0] = -0.0f;
        x[1] = 1e-45f;
        y[2] = 1e38f;
      }
      Row want = y, got = y;
      for (size_t i = 0; i < n; i++) {
        volatile float sum = y[i] + x[i];
        want[i] = sum;
      }
      k->add(x.data(), got.data(), n);
      CHECK(n == 0 || std::memcmp(want.data(), got.data(), n * sizeof(float)) == 0);
    }
  }
}

TEST(kernels, norm_survives_large_and_small_numbers) {
  for (const float size : {1e-40f, 1e-25f, 1.0f, 1e5f, 1e25f}) {
    const Row x(100, size);
    CHECK_NEAR(double{scope::norm(x.data(), x.size())} / double{size}, 10.0, 1e-5);
  }
  CHECK(scope::norm(nullptr, 0) == 0.0f);
}
