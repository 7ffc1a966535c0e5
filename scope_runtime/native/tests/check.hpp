// A test harness in one page: TEST(group, name) { CHECK(...); }. Run with group names as arguments, or none for all.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char * group;
  const char * name;
  void (*body)();
};

std::vector<Test> & tests();
/// Notes a failure of the running test; the first few are printed.
void failed(const char * file, int line, const std::string & what);

struct Registrar {
  Registrar(const char * group, const char * name, void (*body)()) { tests().push_back({group, name, body}); }
};

/// Equal within a tolerance relative to the larger; NaN equals NaN, infinity itself.
inline bool near(double a, double b, double tolerance) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (a == b) return true;
  return std::fabs(a - b) <= tolerance * std::fmax(1.0, std::fmax(std::fabs(a), std::fabs(b)));
}

}  // namespace check

#define TEST(group, name)                                                                         \
  static void test_##group##_##name();                                                            \
  static const check::Registrar registrar_##group##_##name(#group, #name, test_##group##_##name); \
  static void test_##group##_##name()

#define CHECK(condition)                                             \
  do {                                                               \
    if (!(condition)) check::failed(__FILE__, __LINE__, #condition); \
  } while (0)

#define CHECK_EQ(a, b)                                                                               \
  do {                                                                                               \
    const auto check_a = (a);                                                                        \
    const auto check_b = (b);                                                                        \
    if (!(check_a == check_b))                                                                       \
      check::failed(__FILE__, __LINE__,                                                              \
                    #a " == " #b ": " + std::to_string(check_a) + " != " + std::to_string(check_b)); \
  } while (0)

#define CHECK_NEAR(a, b, tolerance)                                                                 \
  do {                                                                                              \
    const double check_a = (a), check_b = (b);                                                      \
    if (!check::near(check_a, check_b, tolerance))                                                  \
      check::failed(__FILE__, __LINE__,                                                             \
                    #a " ~ " #b ": " + std::to_string(check_a) + " != " + std::to_string(check_b)); \
  } while (0)
