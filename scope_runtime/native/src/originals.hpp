// The functions of the llama.cpp that is mapped into this process, found by name. Nothing here is linked.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace scope {

using EvalCallback = bool (*)(void * tensor, bool ask, void * user_data);

/// Finds a symbol that is not our own: in the handles given to attach, then in what comes after us in the link map,
/// then in every loaded object. Null when nobody has it.
void * find_original(const char * name);
/// Handles to look in first.
void set_original_handles(void * libllama, void * libggml_base);
[[noreturn]] void original_missing(const char * name);

/// One function, looked up at its first use: a call may arrive before scope_attach, or without it under LD_PRELOAD.
template <typename Function>
class Original {
 public:
  explicit constexpr Original(const char * symbol) : name(symbol) {}

  /// Null where llama.cpp does not have it.
  Function * find() {
    Function * f = found_.load(std::memory_order_acquire);
    return f != nullptr ? f : look_again();
  }
  Function * look_again() {
    auto * f = reinterpret_cast<Function *>(find_original(name));
    if (f != nullptr) found_.store(f, std::memory_order_release);
    return f;
  }
  /// For the callers that llama.cpp itself sent here: without the real function nothing sound can be done.
  Function * require() {
    Function * f = find();
    if (f == nullptr) original_missing(name);
    return f;
  }

  const char * const name;

 private:
  std::atomic<Function *> found_{nullptr};
};

namespace original {

// ggml-backend.h, ggml.h
extern Original<void(void *, EvalCallback, void *)> sched_set_eval_callback;
extern Original<void(void *)> sched_free;
extern Original<int(void *, void *)> sched_graph_compute_async;
extern Original<const char *(const void *)> get_name;
extern Original<size_t(const void *)> nbytes;
extern Original<int64_t(const void *)> nelements;
extern Original<int64_t(const void *)> nrows;
extern Original<size_t(const void *)> element_size;
extern Original<bool(const void *)> is_contiguous;
extern Original<void(const void *, void *, size_t, size_t)> tensor_get;
extern Original<void(void *, const void *, size_t, size_t)> tensor_set;

// llm_graph_result::set_inputs(const llama_ubatch *)
extern Original<void(void *, const void *)> set_inputs;

// llama.h
extern Original<void(void *)> synchronize;
extern Original<void *(const void *)> get_memory;
extern Original<uint32_t(const void *)> n_seq_max;
extern Original<int32_t(void *, int32_t)> memory_seq_pos_max;
extern Original<void(void *, bool)> memory_clear;
extern Original<bool(void *, int32_t, int32_t, int32_t)> memory_seq_rm;
extern Original<void(void *, int32_t, int32_t, int32_t, int32_t)> memory_seq_cp;
extern Original<void(void *, int32_t)> memory_seq_keep;
extern Original<void(void *, int32_t, int32_t, int32_t, int32_t)> memory_seq_add;
extern Original<void(void *, int32_t, int32_t, int32_t, int)> memory_seq_div;
extern Original<size_t(void *, const uint8_t *, size_t)> state_set_data;
extern Original<size_t(void *, const uint8_t *, size_t, int32_t)> state_seq_set_data;
extern Original<size_t(void *, const uint8_t *, size_t, int32_t, uint32_t)> state_seq_set_data_ext;
extern Original<bool(void *, const char *, int32_t *, size_t, size_t *)> state_load_file;
extern Original<size_t(void *, const char *, int32_t, int32_t *, size_t, size_t *)> state_seq_load_file;

}  // namespace original
}  // namespace scope
