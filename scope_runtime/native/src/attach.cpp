// The callback and columns attach points: llama.cpp's own calls pass through the two functions at the end of this file.
//
// A context is ours when its eval callback is scope_hook_callback(). Every time its graph is rebuilt it hands that
// callback to its scheduler (ggml_backend_sched_set_eval_callback) and then sets the graph's inputs
// (llm_graph_result::set_inputs); when a graph is reused only the inputs are set. So the scheduler tells the hook, and
// the first set_inputs after a rebuild tells which result object belongs to that scheduler. Contexts that are not ours
// take the same way and are left as they are.
#include "attach.hpp"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "callback.hpp"
#include "columns.hpp"
#include "originals.hpp"

#define SCOPE_API extern "C" __attribute__((visibility("default")))

namespace scope {
namespace {

struct Scheduler {
  void * sched = nullptr;
  scope_hook * hook = nullptr;  ///< null: not ours
  ChainedCallback owner;        ///< what the context's owner asked for, where that is not us
};

/// All of the process; locked for a moment at every ubatch.
struct Registry {
  std::mutex mutex;
  std::unordered_map<void *, std::unique_ptr<Scheduler>> schedulers;
  std::unordered_map<const void *, void *> sched_of_result;
  std::unordered_map<void *, scope_hook *> hook_of_memory;
  scope_hook * fallback = nullptr;  ///< takes the first context that has no hook
  void * adopted = nullptr;         ///< that context's scheduler
};

Registry & registry() {
  static auto * r = new Registry;  // never destroyed: llama.cpp may call until the very end of the process
  return *r;
}

/// Scheduler of the graph rebuild that is under way on this thread.
thread_local void * rebuilt = nullptr;
/// Of the last ubatch on this thread: its hook, if that is controlled from outside and knows no memory yet.
thread_local scope_hook * without_memory = nullptr;

Scheduler * find(Registry & r, void * sched) {
  const auto found = r.schedulers.find(sched);
  return found != r.schedulers.end() ? found->second.get() : nullptr;
}

/// Whether a rebuild belongs to this result. One that is bound elsewhere met a rebuild that never came to its own
/// set_inputs: it failed, or was of another library's scheduler.
bool binds(Registry & r, const void * result) {
  if (rebuilt == nullptr) return false;
  const auto bound = r.sched_of_result.find(result);
  if (bound == r.sched_of_result.end() || bound->second == rebuilt) return true;
  const Scheduler *before = find(r, bound->second), *now = find(r, rebuilt);
  return before == nullptr || (now != nullptr && now->hook != nullptr && now->hook == before->hook);
}

/// Whether the hook that takes contexts nobody hooked takes this one.
bool takes(scope_hook & hook, const void * ubatch) {
  if (hook.attachment == nullptr) return true;
  const Gate gate(hook.attachment);
  return hook.attachment->recognises(ubatch);
}

/// The scheduler whose graph this result is, if a hook is on it.
Scheduler * hooked_scheduler(const void * result, const void * ubatch) {
  Registry & r = registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  if (binds(r, result)) r.sched_of_result[result] = rebuilt;
  rebuilt = nullptr;
  const auto bound = r.sched_of_result.find(result);
  Scheduler * s = bound != r.sched_of_result.end() ? find(r, bound->second) : nullptr;
  if (s == nullptr) return nullptr;
  if (s->hook == nullptr && r.fallback != nullptr && (r.adopted == nullptr || r.adopted == s->sched) &&
      takes(*r.fallback, ubatch)) {
    s->hook = r.fallback;
    r.adopted = s->sched;
    s->hook->attached.fetch_or(SCOPE_ATTACH_CALLBACK);
  }
  return s->hook != nullptr ? s : nullptr;
}

const ChainedCallback & chained(const Scheduler & s) {
  return s.owner.function != nullptr ? s.owner : s.hook->chain;
}

bool eval_with_scheduler(void * tensor, bool ask, void * user_data) {
  auto * s = static_cast<Scheduler *>(user_data);
  return eval_node(*s->hook, chained(*s), tensor, ask);
}

void begin_ubatch(scope_hook & hook, const void * ubatch) {
  const Stopwatch watch(hook.stats.hook_ns);
  if (!hook.expected.empty()) {
    prove_ubatch_layout(ubatch, hook.expected);
    hook.expected.clear();
  }
  if (ubatch_layout() != Layout::proved) {
    hook.attached.fetch_and(~uint32_t{SCOPE_ATTACH_COLUMNS});
    return;
  }
  hook.attached.fetch_or(SCOPE_ATTACH_COLUMNS);

  ReadColumns & read = hook.read;
  const bool sound = read_columns(ubatch, read);
  Ubatch & u = hook.ubatch;
  // Begun by hand for this very batch, before it was known that the columns come by themselves: it is the same ubatch.
  if (sound && u.open && u.by_hand && u.last_layer == no_layer && u.columns == read.columns) return;
  hook.commit();
  if (hook.attachment != nullptr) {
    hook.attachment->between_ubatches();
    hook.attachment->arrives(ubatch);
  }
  if (!sound) {
    hook.stats.n_unmatched.add(1);
    return;
  }
  // Swapped, so that no ubatch allocates once there has been a larger one.
  u.columns.swap(read.columns);
  u.shared.swap(read.shared);
  hook.begin(false, read.raw_embeddings);
}

/// Begins the ubatch and lets the scheduler call back only if somebody wants a node: a callback that wants nothing
/// still makes the scheduler wait after every split.
void prepare(Scheduler & s, const void * ubatch) {
  const Gate gate(s.hook->attachment);
  try {
    begin_ubatch(*s.hook, ubatch);
  } catch (...) {
    s.hook->stats.n_unmatched.add(1);
  }
  const bool needed = callback_needed(*s.hook, chained(s));
  original::sched_set_eval_callback.require()(s.sched, needed ? eval_with_scheduler : nullptr, needed ? &s : nullptr);
}

void note_callback(void * sched, EvalCallback callback, void * user_data) {
  Registry & r = registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  auto & place = r.schedulers[sched];
  if (!place) place = std::make_unique<Scheduler>();
  Scheduler & s = *place;
  s.sched = sched;
  if (callback == eval_with_hook) {
    s.hook = static_cast<scope_hook *>(user_data);
    s.owner = {};
    s.hook->attached.fetch_or(SCOPE_ATTACH_CALLBACK);
  } else {
    s.owner = {reinterpret_cast<void *>(callback), user_data};
    if (r.adopted != sched) s.hook = nullptr;
  }
  rebuilt = sched;
  if (r.fallback != nullptr && r.fallback->attachment != nullptr) r.fallback->attachment->reached();
}

/// The graph has been computed: an embedded hook's owner says so itself.
void note_computed(void * sched) {
  scope_hook * hook = nullptr;
  {
    Registry & r = registry();
    const std::lock_guard<std::mutex> lock(r.mutex);
    if (const Scheduler * s = find(r, sched)) hook = s->hook;
    without_memory = nullptr;
    if (hook == nullptr || hook->attachment == nullptr) return;
    const auto bound = [&](const auto & known) { return known.second == hook; };
    if (std::none_of(r.hook_of_memory.begin(), r.hook_of_memory.end(), bound)) without_memory = hook;
  }
  const Gate gate(hook->attachment);
  try {
    hook->commit();
    hook->attachment->between_ubatches();
  } catch (...) {
    hook->stats.n_unmatched.add(1);
  }
}

/// A server waits for its outputs right after it decoded: the context is that of the last ubatch on this thread.
void note_synchronized(void * context) {
  scope_hook * hook = std::exchange(without_memory, nullptr);
  const auto get_memory = original::get_memory.find();
  void * memory = hook != nullptr && get_memory != nullptr ? get_memory(context) : nullptr;
  if (memory == nullptr) return;
  Registry & r = registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.hook_of_memory[memory] = hook;
}

void forget_scheduler(void * sched) {
  Registry & r = registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.schedulers.erase(sched);
  for (auto i = r.sched_of_result.begin(); i != r.sched_of_result.end();)
    i = i->second == sched ? r.sched_of_result.erase(i) : std::next(i);
  if (r.adopted == sched) {
    r.adopted = nullptr;
    if (r.fallback != nullptr && r.fallback->attachment != nullptr) {
      // Its memory goes with the context.
      for (auto i = r.hook_of_memory.begin(); i != r.hook_of_memory.end();)
        i = i->second == r.fallback ? r.hook_of_memory.erase(i) : std::next(i);
      r.fallback->attachment->context_gone();
    }
  }
  if (rebuilt == sched) rebuilt = nullptr;
}

}  // namespace

scope_hook * hook_of_memory(void * memory) {
  Registry & r = registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  const auto found = r.hook_of_memory.find(memory);
  return found != r.hook_of_memory.end() ? found->second : nullptr;
}

void detach(scope_hook * hook) {
  Registry & r = registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  for (auto & [sched, s] : r.schedulers)
    if (s->hook == hook) s->hook = nullptr;
  for (auto i = r.hook_of_memory.begin(); i != r.hook_of_memory.end();)
    i = i->second == hook ? r.hook_of_memory.erase(i) : std::next(i);
  if (r.fallback == hook) {
    r.fallback = nullptr;
    r.adopted = nullptr;
  }
}

}  // namespace scope

SCOPE_API int scope_attach(void * libllama, void * libggml_base, char * err, size_t err_bytes) {
  using namespace scope;
  set_original_handles(libllama, libggml_base);
  std::string missing;
  const auto need = [&](auto & function) {
    if (function.look_again() == nullptr)
      missing += missing.empty() ? function.name : std::string(", ") + function.name;
  };
  need(original::sched_set_eval_callback);
  need(original::get_name);
  need(original::nbytes);
  need(original::nelements);
  need(original::nrows);
  need(original::element_size);
  need(original::is_contiguous);
  need(original::tensor_get);
  need(original::tensor_set);
  if (err != nullptr && err_bytes > 0) err[0] = '\0';
  if (missing.empty()) return SCOPE_OK;
  if (err != nullptr && err_bytes > 0)
    std::snprintf(err, err_bytes, "this llama.cpp lacks functions that the hook needs: %s", missing.c_str());
  return SCOPE_E_MISSING;
}

SCOPE_API int scope_attach_default(scope_hook * hook) {
  scope::Registry & r = scope::registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  if (r.adopted != nullptr)
    if (scope::Scheduler * s = scope::find(r, r.adopted)) s->hook = nullptr;
  r.adopted = nullptr;
  r.fallback = hook;
  return SCOPE_OK;
}

SCOPE_API void * scope_hook_callback(void) {
  return reinterpret_cast<void *>(&scope::eval_with_hook);
}

SCOPE_API int scope_hook_bind_memory(scope_hook * hook, void * memory, char * err, size_t err_bytes) {
  if (err != nullptr && err_bytes > 0) err[0] = '\0';
  if (memory == nullptr) {
    if (err != nullptr && err_bytes > 0) std::snprintf(err, err_bytes, "the context has no memory");
    return SCOPE_E_INVALID;
  }
  scope::Registry & r = scope::registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.hook_of_memory[memory] = hook;
  return SCOPE_OK;
}

SCOPE_API void scope_hook_free(scope_hook * hook) {
  if (hook == nullptr) return;
  scope::detach(hook);
  delete hook;
}

// -- llama.cpp's own names: its calls come here first ----------------------------------------------------------------

SCOPE_API void ggml_backend_sched_set_eval_callback(void * sched, scope::EvalCallback callback, void * user_data) {
  scope::original::sched_set_eval_callback.require()(sched, callback, user_data);
  scope::note_callback(sched, callback, user_data);
}

SCOPE_API void ggml_backend_sched_free(void * sched) {
  scope::forget_scheduler(sched);
  scope::original::sched_free.require()(sched);
}

SCOPE_API int ggml_backend_sched_graph_compute_async(void * sched, void * graph) {
  const int status = scope::original::sched_graph_compute_async.require()(sched, graph);
  scope::note_computed(sched);
  return status;
}

SCOPE_API void llama_synchronize(void * context) {
  scope::original::synchronize.require()(context);
  scope::note_synchronized(context);
}

// llm_graph_result::set_inputs(const llama_ubatch *), a member function: `this` comes first. A shift of the KV calls it
// without an ubatch.
SCOPE_API void _ZN16llm_graph_result10set_inputsEPK12llama_ubatch(void * result, const void * ubatch) {
  const auto real = scope::original::set_inputs.require();
  if (ubatch != nullptr)
    if (scope::Scheduler * s = scope::hooked_scheduler(result, ubatch)) scope::prepare(*s, ubatch);
  real(result, ubatch);
}
