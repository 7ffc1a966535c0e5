// One hook point over an ubatch's columns: measure, decide, change.
#pragma once

#include <cstdint>
#include <vector>

#include "topk.hpp"
#include "ubatch.hpp"

namespace scope {

/// A run of residual rows. Row i belongs to column i, or to the i-th output column (the last block keeps only those).
struct Rows {
  bool of_outputs = false;
  uint32_t first = 0, n = 0;

  uint32_t end() const { return first + n; }
  void include(uint32_t row) {
    if (n == 0 || row < first) {
      n = n == 0 ? 1 : end() - row;
      first = row;
    } else if (row >= end()) {
      n = row + 1 - first;
    }
  }
  uint32_t column(const Ubatch & u, uint32_t row) const { return of_outputs ? u.outputs[row] : row; }
};

/// Buffers that live as long as the hook, so that a decode allocates nothing once it has run at full size.
struct Scratch {
  std::vector<float> total, one_rule, coefficients, doses;
  std::vector<TopkQuestion> questions;
  std::vector<uint32_t> acting;
};

/// The rows that a layer's points have to read: those between the first and the last column that anything wants.
Rows rows_wanted(const Ubatch & ubatch, int32_t layer, const Rows & all);

/// Runs a layer's point of every lane. `h` holds the rows of `rows`, n_embd floats each, and is changed in place; a
/// column is read and changed by its own lane alone. Returns the rows that were changed; none leaves every byte as it
/// was.
Rows apply_layer(Ubatch & ubatch, int32_t layer, const Rows & rows, float * h, Scratch & scratch);

}  // namespace scope
