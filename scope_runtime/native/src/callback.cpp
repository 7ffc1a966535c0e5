#include "callback.hpp"

#include <cstring>

namespace scope {
namespace {

/// Layer of a residual's node, by its whole name: views and copies carry a suffix and are not residuals.
int32_t layer_of(const scope_hook & hook, const char * name) {
  if (std::strncmp(name, "l_out-", 6) == 0) {
    int32_t layer = 0;
    const char * p = name + 6;
    for (; *p >= '0' && *p <= '9' && layer < 1000000; p++) layer = layer * 10 + (*p - '0');
    return *p == '\0' && p > name + 6 && layer < static_cast<int32_t>(hook.n_layer) ? layer : no_layer;
  }
  return !hook.embedding_node.empty() && hook.embedding_node == name ? SCOPE_LAYER_EMBEDDING : no_layer;
}

/// Views and copies, "… (view)", are not hook points.
bool is_probe_candidate(const char * name) {
  if (std::strchr(name, ' ') != nullptr) return false;
  return std::strncmp(name, "l_out-", 6) == 0 || std::strncmp(name, "embd", 4) == 0 ||
         std::strncmp(name, "inp_", 4) == 0 || std::strstr(name, "input_embed") != nullptr;
}

bool wanted(scope_hook & hook, const void * tensor) {
  const char * name = original::get_name.require()(tensor);
  if (hook.record.on && is_probe_candidate(name)) hook.record.note(name);
  const int32_t layer = layer_of(hook, name);
  return layer != no_layer && (hook.wants(layer) || (hook.ubatch.open && hook.capture.wants(layer)));
}

/// F32 rows of the model's width, one after the other: all that the hook can read.
bool is_residual(const scope_hook & hook, const void * tensor) {
  const int64_t n = original::nelements.require()(tensor);
  return original::element_size.require()(tensor) == sizeof(float) && original::is_contiguous.require()(tensor) &&
         original::nrows.require()(tensor) <= UINT32_MAX &&
         n == original::nrows.require()(tensor) * int64_t{hook.n_embd} &&
         original::nbytes.require()(tensor) == static_cast<size_t>(n) * sizeof(float);
}

void run(scope_hook & hook, void * tensor) {
  const Stopwatch watch(hook.stats.hook_ns);
  if (!is_residual(hook, tensor)) {
    hook.stats.n_unmatched.add(1);
    return;
  }
  const int32_t layer = layer_of(hook, original::get_name.require()(tensor));
  const auto n_rows = static_cast<uint32_t>(original::nrows.require()(tensor));
  if (hook.capture.wants(layer))
    if (float * to = hook.capture.take(layer, hook.ubatch, n_rows))
      original::tensor_get.require()(tensor, to, 0, size_t{n_rows} * hook.n_embd * sizeof(float));
  if (!hook.wants(layer)) return;
  Rows rows;
  if (!hook.visit(layer, n_rows, rows)) return;

  const size_t row_bytes = size_t{hook.n_embd} * sizeof(float);
  hook.rows.resize(size_t{rows.n} * hook.n_embd);
  if (rows.n > 0) original::tensor_get.require()(tensor, hook.rows.data(), rows.first * row_bytes, rows.n * row_bytes);
  const Rows changed = hook.apply(layer, rows, hook.rows.data());
  if (changed.n > 0)
    original::tensor_set.require()(tensor, hook.rows.data() + size_t{changed.first - rows.first} * hook.n_embd,
                                   changed.first * row_bytes, changed.n * row_bytes);
}

}  // namespace

bool callback_needed(const scope_hook & hook, const ChainedCallback & chained) {
  return hook.wants_any() || hook.capture.on() || hook.record.on || chained.function != nullptr;
}

bool eval_node(scope_hook & hook, const ChainedCallback & chained, void * tensor, bool ask) {
  const auto theirs = reinterpret_cast<EvalCallback>(chained.function);
  bool ours = false;
  try {
    ours = wanted(hook, tensor);
    if (ours && !ask) run(hook, tensor);
  } catch (...) {
    hook.stats.n_unmatched.add(1);
  }
  if (ask) {
    hook.chained_wants = theirs != nullptr && theirs(tensor, true, chained.user_data);
    return ours || hook.chained_wants;
  }
  // False would end the graph here, silently and with wrong logits: only an owner who asks for that gets it.
  return theirs == nullptr || !hook.chained_wants || theirs(tensor, false, chained.user_data);
}

bool eval_with_hook(void * tensor, bool ask, void * user_data) {
  auto * hook = static_cast<scope_hook *>(user_data);
  // Come straight from the scheduler: llama.cpp was loaded before us, and this is all there is to be seen of it.
  if ((hook->attached.load(std::memory_order_relaxed) & SCOPE_ATTACH_CALLBACK) == 0)
    hook->attached.fetch_or(SCOPE_ATTACH_CALLBACK);
  return eval_node(*hook, hook->chain, tensor, ask);
}

}  // namespace scope
