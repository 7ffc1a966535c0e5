// scope_hook.h: the C interface over the classes. Nothing is thrown past this file.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "hook.hpp"
#include "kernels.hpp"

#define SCOPE_API extern "C" __attribute__((visibility("default")))

static_assert(sizeof(scope_event) == 96);
static_assert(sizeof(scope_span) == 16 && sizeof(scope_request_state) == 24 && sizeof(scope_hook_stats) == 72);

namespace {

int fail(int code, const char * sentence, char * err, size_t err_bytes) {
  if (err != nullptr && err_bytes > 0) std::snprintf(err, err_bytes, "%s", sentence);
  return code;
}

/// Runs what may throw; errors become a code and a sentence.
template <typename Body>
int guarded(char * err, size_t err_bytes, Body && body) {
  try {
    if (err != nullptr && err_bytes > 0) err[0] = '\0';
    return body();
  } catch (const scope::InvalidProgram & e) {
    return fail(SCOPE_E_INVALID, e.what(), err, err_bytes);
  } catch (const std::bad_alloc &) {
    return fail(SCOPE_E_MEMORY, "there is not enough memory", err, err_bytes);
  } catch (const std::exception & e) {
    return fail(SCOPE_E_INVALID, e.what(), err, err_bytes);
  }
}

/// The same where there is no error buffer.
template <typename Body>
int guarded(Body && body) {
  return guarded(nullptr, 0, body);
}

/// For calls that change the sequences: whatever the last ubatch measured is committed before.
template <typename Body>
void noted(scope_hook * hook, Body && body) {
  guarded([&] {
    hook->commit();
    body(hook->sequences);
    return SCOPE_OK;
  });
}

/// The caller's arrays as columns; throws where one cannot be.
std::vector<scope::Column> columns(uint32_t n, const int32_t * tokens, const int32_t * pos, const int32_t * seq,
                                   const int8_t * output) {
  if (n == 0 || n > 1u << 20 || tokens == nullptr || pos == nullptr || seq == nullptr)
    throw std::invalid_argument("an ubatch needs columns");
  std::vector<scope::Column> out(n);
  for (uint32_t i = 0; i < n; i++) {
    out[i] = {tokens[i], pos[i], seq[i], output == nullptr || output[i] != 0};
    if (seq[i] < 0 || seq[i] >= scope::max_sequences || pos[i] < 0)
      throw std::invalid_argument("a column's sequence or position is out of range");
  }
  return out;
}

}  // namespace

SCOPE_API uint32_t scope_abi_version(void) {
  return SCOPE_ABI_VERSION;
}

SCOPE_API const char * scope_build_info(void) {
#ifdef __clang__
  static const std::string text = std::string("clang " __clang_version__ ", ") + scope::kernels().name;
#else
  static const std::string text = std::string("gcc " __VERSION__ ", ") + scope::kernels().name;
#endif
  return text.c_str();
}

// -- programs

SCOPE_API int scope_program_load(const void * data, size_t n_bytes, scope_program ** out, char * err,
                                 size_t err_bytes) {
  if (out == nullptr) return SCOPE_E_INVALID;
  return guarded(err, err_bytes, [&] {
    *out = nullptr;
    *out = new scope_program{scope::Program::load(data, n_bytes)};
    return SCOPE_OK;
  });
}

SCOPE_API void scope_program_free(scope_program * program) {
  delete program;
}

// -- hook

SCOPE_API int scope_hook_new(uint32_t n_embd, uint32_t n_layer, uint32_t ring_events, scope_hook ** out, char * err,
                             size_t err_bytes) {
  return guarded(err, err_bytes, [&]() -> int {
    *out = nullptr;
    if (n_embd == 0 || n_layer == 0 || n_embd > 1u << 20 || n_layer > 1u << 14)
      return fail(SCOPE_E_INVALID, "a model has neither this width nor this number of blocks", err, err_bytes);
    if (ring_events > 1u << 24) return fail(SCOPE_E_INVALID, "the event ring is too large", err, err_bytes);
    *out = new scope_hook(n_embd, n_layer, scope::Ring(ring_events));
    return SCOPE_OK;
  });
}

namespace {

/// Whether the hook's model can run it; null always.
int check_fit(const scope_hook & hook, const scope_program * program, char * err, size_t err_bytes) {
  if (program == nullptr || hook.fits(*program->program)) return SCOPE_OK;
  char text[160];
  std::snprintf(text, sizeof text, "the program is for width %u and %u blocks, the model has width %u and %u blocks",
                program->program->n_embd(), program->program->n_layer(), hook.n_embd, hook.n_layer);
  return fail(SCOPE_E_MISMATCH, text, err, err_bytes);
}

/// Hands a program over by `take(program, serial)`; the handle is gone on success.
template <typename Take>
int hand_over(scope_hook * hook, scope_program * program, uint64_t serial, char * err, size_t err_bytes, Take && take) {
  return guarded(err, err_bytes, [&]() -> int {
    if (const int code = check_fit(*hook, program, err, err_bytes); code != SCOPE_OK) return code;
    if (!take(program != nullptr ? program->program : nullptr, serial))
      return fail(SCOPE_E_STATE, "the serial is 0 or not above those before", err, err_bytes);
    delete program;
    return SCOPE_OK;
  });
}

}  // namespace

SCOPE_API int scope_hook_install(scope_hook * hook, scope_program * program, uint64_t serial, char * err,
                                 size_t err_bytes) {
  return hand_over(hook, program, serial, err, err_bytes, [&](auto taken, uint64_t s) {
    const auto began = std::chrono::steady_clock::now();
    const bool installed = hook->slot.install(std::move(taken), s);
    if (installed) hook->stats.note_swap(std::chrono::steady_clock::now() - began);
    return installed;
  });
}

SCOPE_API int scope_hook_hold(scope_hook * hook, scope_program * program, uint64_t serial, char * err,
                              size_t err_bytes) {
  return hand_over(hook, program, serial, err, err_bytes,
                   [&](auto taken, uint64_t s) { return hook->slot.hold(std::move(taken), s); });
}

SCOPE_API int scope_hook_release(scope_hook * hook, uint64_t serial) {
  return guarded([&] { return hook->slot.release(serial) ? SCOPE_OK : SCOPE_E_STATE; });
}

SCOPE_API int scope_hook_assign(scope_hook * hook, uint64_t others, const int32_t * seq, const uint64_t * serial,
                                size_t n, uint64_t * number, char * err, size_t err_bytes) {
  return guarded(err, err_bytes, [&]() -> int {
    if (n > 0 && (seq == nullptr || serial == nullptr)) throw std::invalid_argument("an assignment without its arrays");
    std::vector<scope::Assigned> assigned(n);
    for (size_t i = 0; i < n; i++) {
      if (seq[i] < 0 || seq[i] >= scope::max_sequences) throw std::invalid_argument("a sequence is out of range");
      assigned[i] = {seq[i], serial[i]};
    }
    const uint64_t published = hook->publish(others, assigned);
    if (published == 0) return fail(SCOPE_E_STATE, "a program is neither held nor in force", err, err_bytes);
    if (number != nullptr) *number = published;
    return SCOPE_OK;
  });
}

SCOPE_API int scope_hook_in_force(scope_hook * hook) {
  return guarded([&] { return hook->slot.in_force() ? 1 : 0; });
}

SCOPE_API uint64_t scope_hook_assignment(const scope_hook * hook) {
  return hook->assignment_acknowledged.load(std::memory_order_acquire);
}

SCOPE_API size_t scope_hook_collect(scope_hook * hook) {
  return hook->slot.collect();
}

SCOPE_API uint64_t scope_hook_acknowledged(const scope_hook * hook) {
  return hook->acknowledged.load(std::memory_order_acquire);
}

SCOPE_API uint32_t scope_hook_attached(const scope_hook * hook) {
  return hook->attached.load(std::memory_order_acquire);
}

SCOPE_API void scope_hook_chain(scope_hook * hook, void * cb_eval, void * user_data) {
  hook->chain = {cb_eval, user_data};
}

// -- what attach.cpp looks for

SCOPE_API int scope_hook_expect_columns(scope_hook * hook, uint32_t n, const int32_t * tokens, const int32_t * pos,
                                        const int32_t * seq, const int8_t * output) {
  return guarded([&] {
    hook->expected = columns(n, tokens, pos, seq, output);
    return SCOPE_OK;
  });
}

SCOPE_API int scope_hook_embedding_node(scope_hook * hook, const char * name) {
  return guarded([&] {
    hook->embedding_node = name != nullptr ? name : "";
    return SCOPE_OK;
  });
}

SCOPE_API void scope_hook_record_names(scope_hook * hook, int on) {
  hook->record.on = on != 0;
  if (on != 0) hook->record.names.clear();
}

SCOPE_API size_t scope_hook_names(const scope_hook * hook, char * out, size_t n_bytes) {
  size_t n = 0;
  for (const std::string & name : hook->record.names) {
    if (name.size() + 1 > n_bytes - n) break;
    std::memcpy(out + n, name.data(), name.size());
    n += name.size();
    out[n++] = '\n';
  }
  return n;
}

// -- columns and residuals by hand

SCOPE_API int scope_hook_columns(scope_hook * hook, uint32_t n, const int32_t * tokens, const int32_t * pos,
                                 const int32_t * seq, const int8_t * output) {
  return guarded([&] {
    const scope::Stopwatch watch(hook->stats.hook_ns);
    auto taken = columns(n, tokens, pos, seq, output);
    hook->commit();
    hook->ubatch.columns = std::move(taken);
    hook->ubatch.shared.clear();
    hook->begin(true);
    return SCOPE_OK;
  });
}

SCOPE_API int scope_hook_residual(scope_hook * hook, int32_t layer, float * h, uint32_t n_rows) {
  return guarded([&]() -> int {
    const scope::Stopwatch watch(hook->stats.hook_ns);
    if (!hook->ubatch.open) return SCOPE_E_STATE;
    if (layer < -1 || layer >= static_cast<int32_t>(hook->n_layer) || (h == nullptr && n_rows > 0))
      return SCOPE_E_INVALID;
    scope::Rows wanted;
    if (!hook->visit(layer, n_rows, wanted)) return SCOPE_E_MISMATCH;
    return hook->apply(layer, wanted, h + size_t{wanted.first} * hook->n_embd).n > 0 ? 1 : 0;
  });
}

SCOPE_API void scope_hook_end_ubatch(scope_hook * hook) {
  noted(hook, [](scope::Sequences &) {});
}

// -- requests

SCOPE_API int scope_request_begin(scope_hook * hook, int32_t seq, uint64_t request_id, int32_t n_prompt) {
  return guarded([&]() -> int {
    hook->commit();
    if (seq < 0 || seq >= scope::max_sequences || n_prompt < 0) return SCOPE_E_INVALID;
    return hook->sequences.request_begin(seq, request_id, n_prompt) ? SCOPE_OK : SCOPE_E_STATE;
  });
}

SCOPE_API int scope_request_end(scope_hook * hook, int32_t seq) {
  return guarded([&] {
    hook->commit();
    return hook->sequences.request_end(seq) ? SCOPE_OK : SCOPE_E_STATE;
  });
}

SCOPE_API int scope_request_status(scope_hook * hook, int32_t seq, scope_request_state * out) {
  return guarded([&] {
    hook->commit();
    return hook->sequences.request_status(seq, *out) ? SCOPE_OK : SCOPE_E_STATE;
  });
}

SCOPE_API size_t scope_sequence_spans(scope_hook * hook, int32_t seq, scope_span * out, size_t max) {
  size_t n = 0;
  noted(hook, [&](scope::Sequences & s) { n = s.spans(seq, out, max); });
  return n;
}

SCOPE_API size_t scope_sequence_measured(scope_hook * hook, int32_t seq, int32_t position, float * activation,
                                         float * dose, uint8_t * fired, size_t max) {
  size_t n = 0;
  noted(hook, [&](scope::Sequences & s) { n = s.measured(seq, position, activation, dose, fired, max); });
  return n;
}

// -- memory

SCOPE_API void scope_memory_clear(scope_hook * hook) {
  noted(hook, [](scope::Sequences & s) { s.clear(); });
}

SCOPE_API void scope_memory_seq_rm(scope_hook * hook, int32_t seq, int32_t p0, int32_t p1) {
  noted(hook, [&](scope::Sequences & s) { s.remove(seq, p0, p1); });
}

SCOPE_API void scope_memory_seq_cp(scope_hook * hook, int32_t src, int32_t dst, int32_t p0, int32_t p1) {
  noted(hook, [&](scope::Sequences & s) { s.copy(src, dst, p0, p1); });
}

SCOPE_API void scope_memory_seq_keep(scope_hook * hook, int32_t seq) {
  noted(hook, [&](scope::Sequences & s) { s.keep(seq); });
}

SCOPE_API void scope_memory_seq_add(scope_hook * hook, int32_t seq, int32_t p0, int32_t p1, int32_t delta) {
  noted(hook, [&](scope::Sequences & s) { s.shift(seq, p0, p1, delta); });
}

SCOPE_API void scope_memory_restored(scope_hook * hook, int32_t seq, int32_t n_positions) {
  noted(hook, [&](scope::Sequences & s) {
    if (seq < 0)
      s.restored_all(n_positions);
    else
      s.restored(seq, 0, n_positions);
  });
}

// -- events

SCOPE_API size_t scope_hook_drain(scope_hook * hook, scope_event * out, size_t max) {
  return hook->ring.drain(out, max);
}

SCOPE_API uint64_t scope_hook_dropped(const scope_hook * hook) {
  return hook->ring.dropped();
}

SCOPE_API void scope_hook_get_stats(const scope_hook * hook, scope_hook_stats * out) {
  const scope::Stats & s = hook->stats;
  *out = {s.n_ubatches.get(), s.n_columns.get(), s.n_residuals.get(), s.n_unmatched.get(), s.n_unsteered_columns.get(),
          s.hook_ns.get(),    s.n_swaps.get(),   s.swap_ns.get(),     s.swap_ns_max.get()};
}
