#include "originals.hpp"

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace scope {
namespace {

std::atomic<void *> handles[2];

const void * object_of(const void * address) {
  Dl_info info;
  return dladdr(address, &info) != 0 ? info.dli_fbase : nullptr;
}

/// A handle's search covers its dependencies, and under some orders that leads back to our own symbol of that name.
void * not_ours(void * symbol) {
  static const void * const ours = object_of(reinterpret_cast<const void *>(&find_original));
  return symbol != nullptr && object_of(symbol) != ours ? symbol : nullptr;
}

/// Objects loaded without RTLD_GLOBAL, as Python loads llama.cpp, are in no scope that we could search by name.
void * find_in_loaded(const char * name) {
  std::vector<std::string> paths;
  const auto note = [](dl_phdr_info * info, size_t, void * out) {
    if (info->dlpi_name != nullptr && info->dlpi_name[0] != '\0')
      static_cast<std::vector<std::string> *>(out)->emplace_back(info->dlpi_name);
    return 0;
  };
  dl_iterate_phdr(note, &paths);
  for (const std::string & path : paths) {
    void * handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    void * symbol = not_ours(dlsym(handle, name));
    dlclose(handle);  // only the reference: the object was there before
    if (symbol != nullptr) return symbol;
  }
  return nullptr;
}

}  // namespace

void set_original_handles(void * libllama, void * libggml_base) {
  handles[0].store(libllama);
  handles[1].store(libggml_base);
}

void * find_original(const char * name) {
  for (const auto & handle : handles)
    if (void * h = handle.load())
      if (void * symbol = not_ours(dlsym(h, name))) return symbol;
  if (void * symbol = not_ours(dlsym(RTLD_NEXT, name))) return symbol;
  return find_in_loaded(name);
}

void original_missing(const char * name) {
  std::fprintf(stderr, "scope: llama.cpp called %s through the hook, but its own one cannot be found\n", name);
  std::abort();
}

namespace original {

#define SCOPE_ORIGINAL(variable, symbol) decltype(variable) variable(symbol)

SCOPE_ORIGINAL(sched_set_eval_callback, "ggml_backend_sched_set_eval_callback");
SCOPE_ORIGINAL(sched_free, "ggml_backend_sched_free");
SCOPE_ORIGINAL(sched_graph_compute_async, "ggml_backend_sched_graph_compute_async");
SCOPE_ORIGINAL(synchronize, "llama_synchronize");
SCOPE_ORIGINAL(get_name, "ggml_get_name");
SCOPE_ORIGINAL(nbytes, "ggml_nbytes");
SCOPE_ORIGINAL(nelements, "ggml_nelements");
SCOPE_ORIGINAL(nrows, "ggml_nrows");
SCOPE_ORIGINAL(element_size, "ggml_element_size");
SCOPE_ORIGINAL(is_contiguous, "ggml_is_contiguous");
SCOPE_ORIGINAL(tensor_get, "ggml_backend_tensor_get");
SCOPE_ORIGINAL(tensor_set, "ggml_backend_tensor_set");
SCOPE_ORIGINAL(set_inputs, "_ZN16llm_graph_result10set_inputsEPK12llama_ubatch");
SCOPE_ORIGINAL(get_memory, "llama_get_memory");
SCOPE_ORIGINAL(n_seq_max, "llama_n_seq_max");
SCOPE_ORIGINAL(memory_seq_pos_max, "llama_memory_seq_pos_max");
SCOPE_ORIGINAL(memory_clear, "llama_memory_clear");
SCOPE_ORIGINAL(memory_seq_rm, "llama_memory_seq_rm");
SCOPE_ORIGINAL(memory_seq_cp, "llama_memory_seq_cp");
SCOPE_ORIGINAL(memory_seq_keep, "llama_memory_seq_keep");
SCOPE_ORIGINAL(memory_seq_add, "llama_memory_seq_add");
SCOPE_ORIGINAL(memory_seq_div, "llama_memory_seq_div");
SCOPE_ORIGINAL(state_set_data, "llama_state_set_data");
SCOPE_ORIGINAL(state_seq_set_data, "llama_state_seq_set_data");
SCOPE_ORIGINAL(state_seq_set_data_ext, "llama_state_seq_set_data_ext");
SCOPE_ORIGINAL(state_load_file, "llama_state_load_file");
SCOPE_ORIGINAL(state_seq_load_file, "llama_state_seq_load_file");

}  // namespace original
}  // namespace scope
