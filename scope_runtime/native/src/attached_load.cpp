// Where a preloaded library begins: nobody in the process knows that it is there.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "attached.hpp"

namespace {

__attribute__((constructor)) void begin() {
  const char * name = std::getenv("SCOPE_SHM");
  if (name == nullptr || name[0] == '\0') return;
  const std::string folder = name;
  // A process that this one starts inherits the preload, and must not take the folder for its own.
  unsetenv("SCOPE_SHM");
  try {
    new scope::Attached(folder);  // for as long as the process: llama.cpp may call until its very end
    std::fprintf(stderr, "scope: the hook is controlled from %s\n", folder.c_str());
  } catch (const std::exception & e) {
    std::fprintf(stderr, "scope: the hook does nothing here: %s\n", e.what());
  }
}

}  // namespace
