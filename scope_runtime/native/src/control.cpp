// The controller's side of the shared files, and its part of scope_shared.h.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>

#include "shared_file.hpp"

#define SCOPE_API extern "C" __attribute__((visibility("default")))

struct scope_control {
  explicit scope_control(scope::SharedFile taken) : file(std::move(taken)), ring(file.ring()) {}

  scope::SharedFile file;
  scope::Ring ring;
  std::mutex mutex;
  std::set<uint64_t> outstanding;  ///< numbers whose outcome nobody has read yet
};

namespace {

using Clock = std::chrono::steady_clock;

int fail(int code, const char * sentence, char * err, size_t err_bytes) {
  if (err != nullptr && err_bytes > 0) std::snprintf(err, err_bytes, "%s", sentence);
  return code;
}

template <typename Make>
int made(scope_control ** out, char * err, size_t err_bytes, Make && make) {
  if (out == nullptr) return SCOPE_E_INVALID;
  *out = nullptr;
  if (err != nullptr && err_bytes > 0) err[0] = '\0';
  try {
    *out = new scope_control(make());
    return SCOPE_OK;
  } catch (const std::bad_alloc &) {
    return fail(SCOPE_E_MEMORY, "there is not enough memory", err, err_bytes);
  } catch (const std::exception & e) {
    return fail(SCOPE_E_INVALID, e.what(), err, err_bytes);
  }
}

}  // namespace

SCOPE_API int scope_control_create(const char * folder, uint32_t n_embd, uint32_t n_layer, uint32_t ring_events,
                                   scope_control ** out, char * err, size_t err_bytes) {
  return made(out, err, err_bytes, [&] { return scope::SharedFile::create(folder, n_embd, n_layer, ring_events); });
}

SCOPE_API int scope_control_open(const char * folder, scope_control ** out, char * err, size_t err_bytes) {
  return made(out, err, err_bytes, [&] { return scope::SharedFile::open(folder, "controller.lock"); });
}

SCOPE_API void scope_control_close(scope_control * control) {
  delete control;
}

SCOPE_API void scope_control_model(const scope_control * control, uint32_t * n_embd, uint32_t * n_layer) {
  *n_embd = control->file.header().n_embd;
  *n_layer = control->file.header().n_layer;
}

SCOPE_API int scope_control_alive(const scope_control * control) {
  return scope::is_locked(control->file.folder() + "/server.lock") ? 1 : 0;
}

SCOPE_API int scope_control_send(scope_control * control, const scope_command * command, uint64_t * number, char * err,
                                 size_t err_bytes) {
  const std::lock_guard<std::mutex> lock(control->mutex);
  scope::SharedHeader & h = control->file.header();
  const uint64_t at = h.written.load(std::memory_order_relaxed);
  const uint64_t applied = h.applied.load(std::memory_order_acquire);
  const uint64_t oldest = control->outstanding.empty() ? applied : std::min(applied, *control->outstanding.begin());
  if (at - oldest >= scope::max_commands)
    return fail(SCOPE_E_STATE, "too many commands wait for the server", err, err_bytes);
  try {
    control->outstanding.insert(at);
  } catch (const std::bad_alloc &) {
    return fail(SCOPE_E_MEMORY, "there is not enough memory", err, err_bytes);
  }
  h.commands[at % scope::max_commands].command = *command;
  h.written.store(at + 1, std::memory_order_release);
  scope::wake(h.written);
  *number = at;
  return SCOPE_OK;
}

SCOPE_API int scope_control_wait(scope_control * control, uint64_t number, int32_t timeout_ms, int32_t * code,
                                 char * err, size_t err_bytes) {
  const scope::SharedHeader & h = control->file.header();
  const auto limit = Clock::now() + std::chrono::milliseconds(timeout_ms);
  uint64_t applied = h.applied.load(std::memory_order_acquire);
  while (applied <= number) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(limit - Clock::now()).count();
    if (left <= 0) break;
    scope::wait_change(h.applied, applied, static_cast<int32_t>(left));
    applied = h.applied.load(std::memory_order_acquire);
  }
  const std::lock_guard<std::mutex> lock(control->mutex);
  if (applied <= number) return 0;
  control->outstanding.erase(number);
  const scope::SharedCommand & record = h.commands[number % scope::max_commands];
  *code = record.code;
  char sentence[sizeof record.sentence];
  std::memcpy(sentence, record.sentence, sizeof sentence);
  sentence[sizeof sentence - 1] = '\0';
  fail(0, sentence, err, err_bytes);
  return 1;
}

SCOPE_API void scope_control_abandon(scope_control * control, uint64_t number) {
  const std::lock_guard<std::mutex> lock(control->mutex);
  control->outstanding.erase(number);
}

SCOPE_API int scope_control_status(const scope_control * control, scope_server_status * out) {
  if (!control->file.header().status.read(*out)) return SCOPE_E_STATE;
  out->embedding_node[sizeof out->embedding_node - 1] = '\0';
  out->sentence[sizeof out->sentence - 1] = '\0';
  return SCOPE_OK;
}

SCOPE_API int scope_control_slot(const scope_control * control, int32_t slot, scope_slot_state * out) {
  if (slot < 0 || slot >= SCOPE_MAX_SLOTS) return SCOPE_E_INVALID;
  return control->file.header().slots[slot].read(*out) ? SCOPE_OK : SCOPE_E_STATE;
}

SCOPE_API size_t scope_control_drain(scope_control * control, scope_event * out, size_t max) {
  return control->ring.drain(out, max);
}

SCOPE_API uint64_t scope_control_dropped(const scope_control * control) {
  return control->ring.dropped();
}
