#include <cstring>

#include "check.hpp"
#include "scope_hook.h"

namespace {

int n_failures = 0;

bool wanted(const check::Test & test, int argc, char ** argv) {
  for (int i = 1; i < argc; i++)
    if (std::strcmp(argv[i], test.group) == 0) return true;
  return argc < 2;
}

}  // namespace

std::vector<check::Test> & check::tests() {
  static std::vector<Test> all;
  return all;
}

void check::failed(const char * file, int line, const std::string & what) {
  if (n_failures++ < 10) std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

int main(int argc, char ** argv) {
  std::printf("%s\n", scope_build_info());
  int n_passed = 0, n_failed = 0;
  for (const check::Test & test : check::tests()) {
    if (!wanted(test, argc, argv)) continue;
    n_failures = 0;
    test.body();
    (n_failures == 0 ? n_passed : n_failed)++;
    if (n_failures != 0) std::printf("FAILED %s/%s: %d checks\n", test.group, test.name, n_failures);
  }
  std::printf("%d passed, %d failed\n", n_passed, n_failed);
  return n_failed == 0 && n_passed > 0 ? 0 : 1;
}
