// The memory attach point: what happens to the KV outside of decoding, under llama.cpp's own names.
//
// Each calls the real function first and then notes what it did, for the hook bound to that memory. Bound to none, it
// is the real function and nothing else.
#include <utility>

#include "attach.hpp"
#include "originals.hpp"

#define SCOPE_API extern "C" __attribute__((visibility("default")))

namespace {

using scope::Sequences;
namespace original = scope::original;

template <typename Note>
void note(void * memory, Note && change) {
  scope_hook * hook = scope::hook_of_memory(memory);
  if (hook == nullptr) return;
  hook->attached.fetch_or(SCOPE_ATTACH_MEMORY);
  const scope::Gate gate(hook->attachment);
  try {
    hook->commit();
    change(hook->sequences);
  } catch (...) {
    hook->stats.n_unmatched.add(1);
  }
}

/// After a restore: whatever the sequence holds now, it is not known under which program it was computed.
void note_restored(void * context, int32_t seq) {
  const auto get_memory = original::get_memory.find();
  const auto pos_max = original::memory_seq_pos_max.find();
  if (get_memory == nullptr || pos_max == nullptr) return;
  void * memory = get_memory(context);
  note(memory, [&](Sequences & s) { s.restored(seq, 0, pos_max(memory, seq) + 1); });
}

void note_all_restored(void * context) {
  const auto n_seq_max = original::n_seq_max.find();
  if (n_seq_max == nullptr) return;
  const auto n = static_cast<int32_t>(n_seq_max(context));
  for (int32_t seq = 0; seq < n; seq++) note_restored(context, seq);
}

}  // namespace

SCOPE_API void llama_memory_clear(void * memory, bool data) {
  original::memory_clear.require()(memory, data);
  note(memory, [](Sequences & s) { s.clear(); });
}

SCOPE_API bool llama_memory_seq_rm(void * memory, int32_t seq, int32_t p0, int32_t p1) {
  const bool removed = original::memory_seq_rm.require()(memory, seq, p0, p1);
  if (removed) note(memory, [&](Sequences & s) { s.remove(seq, p0, p1); });
  return removed;
}

SCOPE_API void llama_memory_seq_cp(void * memory, int32_t src, int32_t dst, int32_t p0, int32_t p1) {
  original::memory_seq_cp.require()(memory, src, dst, p0, p1);
  note(memory, [&](Sequences & s) { s.copy(src, dst, p0, p1); });
}

SCOPE_API void llama_memory_seq_keep(void * memory, int32_t seq) {
  original::memory_seq_keep.require()(memory, seq);
  note(memory, [&](Sequences & s) { s.keep(seq); });
}

SCOPE_API void llama_memory_seq_add(void * memory, int32_t seq, int32_t p0, int32_t p1, int32_t delta) {
  original::memory_seq_add.require()(memory, seq, p0, p1, delta);
  note(memory, [&](Sequences & s) { s.shift(seq, p0, p1, delta); });
}

SCOPE_API void llama_memory_seq_div(void * memory, int32_t seq, int32_t p0, int32_t p1, int divisor) {
  original::memory_seq_div.require()(memory, seq, p0, p1, divisor);
  note(memory, [&](Sequences & s) { s.divide(seq, p0, p1, divisor); });
}

SCOPE_API size_t llama_state_set_data(void * context, const uint8_t * data, size_t n_bytes) {
  const size_t n_read = original::state_set_data.require()(context, data, n_bytes);
  note_all_restored(context);
  return n_read;
}

SCOPE_API size_t llama_state_seq_set_data(void * context, const uint8_t * data, size_t n_bytes, int32_t seq) {
  const size_t n_read = original::state_seq_set_data.require()(context, data, n_bytes, seq);
  note_restored(context, seq);
  return n_read;
}

SCOPE_API size_t llama_state_seq_set_data_ext(void * context, const uint8_t * data, size_t n_bytes, int32_t seq,
                                              uint32_t flags) {
  const size_t n_read = original::state_seq_set_data_ext.require()(context, data, n_bytes, seq, flags);
  note_restored(context, seq);
  return n_read;
}

SCOPE_API bool llama_state_load_file(void * context, const char * path, int32_t * tokens, size_t capacity,
                                     size_t * n_tokens) {
  const bool loaded = original::state_load_file.require()(context, path, tokens, capacity, n_tokens);
  note_all_restored(context);
  return loaded;
}

SCOPE_API size_t llama_state_seq_load_file(void * context, const char * path, int32_t seq, int32_t * tokens,
                                           size_t capacity, size_t * n_tokens) {
  const size_t n_read = original::state_seq_load_file.require()(context, path, seq, tokens, capacity, n_tokens);
  note_restored(context, seq);
  return n_read;
}
