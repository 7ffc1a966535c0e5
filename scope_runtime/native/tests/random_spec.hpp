#pragma once

#include "spec.hpp"

namespace test {

/// A random program over all operations, gates, modes, scopes and triggers.
Spec random_spec(Random & random, uint32_t n_embd);

}  // namespace test
