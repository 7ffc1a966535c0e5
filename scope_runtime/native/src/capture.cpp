// Capture, and its part of scope_hook.h.
#include "capture.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>

#include "hook.hpp"

#define SCOPE_API extern "C" __attribute__((visibility("default")))

static_assert(sizeof(scope_captured_row) == 16);

namespace scope {

void Capture::start(std::vector<int32_t> layers, uint32_t n_embd, size_t capacity) {
  layers_ = std::move(layers);
  n_embd_ = n_embd;
  capacity_ = capacity;
  lost_ = 0;
  rows_.clear();
  h_.clear();
  rows_.reserve(capacity);  // so that nothing can throw between noting a row and making room for it
}

bool Capture::wants(int32_t layer) const {
  return std::find(layers_.begin(), layers_.end(), layer) != layers_.end();
}

float * Capture::take(int32_t layer, const Ubatch & ubatch, uint32_t n_rows) {
  const bool of_outputs = n_rows != ubatch.size();
  if (of_outputs && n_rows != ubatch.outputs.size())
    throw std::invalid_argument("rows that are neither the columns nor the outputs");
  if (n_rows == 0) return nullptr;
  if (rows_.size() + n_rows > capacity_) {
    lost_ += n_rows;
    return nullptr;
  }
  h_.resize((rows_.size() + n_rows) * n_embd_);
  for (uint32_t i = 0; i < n_rows; i++) {
    const Column & column = ubatch.columns[of_outputs ? ubatch.outputs[i] : i];
    rows_.push_back({layer, column.sequence, column.position, column.token});
  }
  return h_.data() + h_.size() - n_rows * n_embd_;
}

void Capture::drain(scope_captured_row * rows, float * h) {
  std::copy(rows_.begin(), rows_.end(), rows);
  std::copy(h_.begin(), h_.end(), h);
  rows_.clear();
  h_.clear();
}

}  // namespace scope

SCOPE_API int scope_hook_capture(scope_hook * hook, const int32_t * layers, uint32_t n_layers, size_t capacity_rows) {
  if ((n_layers > 0 && layers == nullptr) || capacity_rows > 1u << 24) return SCOPE_E_INVALID;
  for (uint32_t i = 0; i < n_layers; i++)
    if (layers[i] < SCOPE_LAYER_EMBEDDING || layers[i] >= static_cast<int32_t>(hook->n_layer)) return SCOPE_E_MISMATCH;
  try {
    hook->capture.start({layers, layers + n_layers}, hook->n_embd, capacity_rows);
  } catch (const std::bad_alloc &) {
    return SCOPE_E_MEMORY;
  }
  return SCOPE_OK;
}

SCOPE_API size_t scope_hook_captured(const scope_hook * hook, uint64_t * n_lost) {
  if (n_lost != nullptr) *n_lost = hook->capture.lost();
  return hook->capture.waiting();
}

SCOPE_API void scope_hook_take_captured(scope_hook * hook, scope_captured_row * rows, float * h) {
  hook->capture.drain(rows, h);
}
