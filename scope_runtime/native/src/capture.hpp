// Residuals on their way past, copied for whoever records them: before any change, with where they belong.
#pragma once

#include <cstdint>
#include <vector>

#include "scope_hook.h"
#include "ubatch.hpp"

namespace scope {

class Capture {
 public:
  /// Copies at these layers from now on, up to `capacity` rows between two drains. No layers: nothing. Forgets all
  /// that waits.
  void start(std::vector<int32_t> layers, uint32_t n_embd, size_t capacity);

  bool on() const { return !layers_.empty(); }
  bool wants(int32_t layer) const;

  /// Room for a residual's n_rows rows, (n_rows, n_embd), to be filled at once; null where there is none left (they
  /// count as lost). The rows are the ubatch's columns or its outputs, as in scope_hook::visit; throws
  /// std::invalid_argument where they are neither.
  float * take(int32_t layer, const Ubatch & ubatch, uint32_t n_rows);

  size_t waiting() const { return rows_.size(); }
  uint64_t lost() const { return lost_; }
  /// Moves all that waits out, oldest first.
  void drain(scope_captured_row * rows, float * h);

 private:
  std::vector<int32_t> layers_;
  std::vector<scope_captured_row> rows_;
  std::vector<float> h_;
  size_t n_embd_ = 0, capacity_ = 0;
  uint64_t lost_ = 0;
};

}  // namespace scope
