#include "fake_llama.hpp"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Tensor {
  std::string name;
  std::vector<float> data;
  int64_t n_rows;
};

struct Scheduler {
  FakeCallback callback = nullptr;
  void * user_data = nullptr;
};

struct Context {
  FakeCallback callback;
  void * user_data;
  Scheduler * sched;
  int results[2];  // only their addresses matter
  int memory;
};

struct Ubatch {
  uint32_t equal_seqs, n_tokens, n_seq_tokens, n_seqs, n_seqs_unq, n_pos;
  const int32_t * token;
  const float * embd;
  const int32_t * pos;
  const int32_t * n_seq_id;
  const int32_t * const * seq_id;
  const int32_t * seq_id_unq;
  const int32_t * seq_idx;
  const int8_t * output;
};

bool layout_changed = false;

const Tensor & as_tensor(const void * t) {
  return *static_cast<const Tensor *>(t);
}

}  // namespace

// -- ggml

EXPORT const char * ggml_get_name(const void * t) {
  return as_tensor(t).name.c_str();
}
EXPORT size_t ggml_nbytes(const void * t) {
  return as_tensor(t).data.size() * sizeof(float);
}
EXPORT int64_t ggml_nelements(const void * t) {
  return static_cast<int64_t>(as_tensor(t).data.size());
}
EXPORT int64_t ggml_nrows(const void * t) {
  return as_tensor(t).n_rows;
}
EXPORT size_t ggml_element_size(const void *) {
  return sizeof(float);
}
EXPORT bool ggml_is_contiguous(const void *) {
  return true;
}
EXPORT void ggml_backend_tensor_get(const void * t, void * out, size_t offset, size_t n) {
  std::memcpy(out, reinterpret_cast<const char *>(as_tensor(t).data.data()) + offset, n);
}
EXPORT void ggml_backend_tensor_set(void * t, const void * in, size_t offset, size_t n) {
  std::memcpy(reinterpret_cast<char *>(static_cast<Tensor *>(t)->data.data()) + offset, in, n);
}
EXPORT void ggml_backend_sched_set_eval_callback(void * sched, FakeCallback callback, void * user_data) {
  *static_cast<Scheduler *>(sched) = {callback, user_data};
}
EXPORT void ggml_backend_sched_free(void * sched) {
  delete static_cast<Scheduler *>(sched);
}

EXPORT int ggml_backend_sched_graph_compute_async(void *, void *) {
  return 0;
}

// -- llama: the memory only says what it was asked

EXPORT void _ZN16llm_graph_result10set_inputsEPK12llama_ubatch(void * result, const void *) {
  ++*static_cast<int *>(result);
}
EXPORT void llama_synchronize(void *) {}
EXPORT void * llama_get_memory(void * context) {
  return &static_cast<Context *>(context)->memory;
}
EXPORT uint32_t llama_n_seq_max(const void *) {
  return 2;
}
EXPORT int32_t llama_memory_seq_pos_max(void *, int32_t seq) {
  return seq == 0 ? 4 : -1;
}
EXPORT void llama_memory_clear(void * memory, bool) {
  ++*static_cast<int *>(memory);
}
EXPORT bool llama_memory_seq_rm(void * memory, int32_t, int32_t p0, int32_t) {
  ++*static_cast<int *>(memory);
  return p0 != 99;  // as a recurrent memory refuses to drop a part
}
EXPORT void llama_memory_seq_cp(void * memory, int32_t, int32_t, int32_t, int32_t) {
  ++*static_cast<int *>(memory);
}
EXPORT void llama_memory_seq_keep(void * memory, int32_t) {
  ++*static_cast<int *>(memory);
}
EXPORT void llama_memory_seq_add(void * memory, int32_t, int32_t, int32_t, int32_t) {
  ++*static_cast<int *>(memory);
}
EXPORT void llama_memory_seq_div(void * memory, int32_t, int32_t, int32_t, int) {
  ++*static_cast<int *>(memory);
}
EXPORT size_t llama_state_set_data(void *, const uint8_t *, size_t n) {
  return n;
}
EXPORT size_t llama_state_seq_set_data_ext(void *, const uint8_t *, size_t n, int32_t, uint32_t) {
  return n;
}
EXPORT size_t llama_state_seq_set_data(void * context, const uint8_t * data, size_t n, int32_t seq) {
  return llama_state_seq_set_data_ext(context, data, n, seq, 0);
}
EXPORT bool llama_state_load_file(void *, const char *, int32_t *, size_t, size_t *) {
  return true;
}
EXPORT size_t llama_state_seq_load_file(void *, const char *, int32_t, int32_t *, size_t, size_t *) {
  return 1;
}

// -- the context

namespace {

void * context_new(FakeCallback callback, void * user_data) {
  return new Context{callback, user_data, new Scheduler, {0, 0}, 0};
}

void context_free(void * context) {
  auto * c = static_cast<Context *>(context);
  ggml_backend_sched_free(c->sched);
  delete c;
}

void rebuild_graph(Context * c) {
  ggml_backend_sched_set_eval_callback(c->sched, c->callback, c->user_data);
}

void eval(const Scheduler & s, Tensor & t) {
  if (s.callback != nullptr && s.callback(&t, true, s.user_data)) s.callback(&t, false, s.user_data);
}

void decode(void * context, const FakeBatch * b, bool rebuild, float * out) {
  auto * c = static_cast<Context *>(context);
  std::vector<int32_t> n_seq_id(b->n, 1);
  std::vector<const int32_t *> seq_id(b->n);
  size_t n_outputs = 0;
  for (uint32_t i = 0; i < b->n; i++) {
    seq_id[i] = &b->seq[i];
    n_outputs += b->output[i] != 0 ? 1 : 0;
  }
  Ubatch u{0,      b->n,    1,        b->n, 1, 1, b->tokens, nullptr, b->pos, n_seq_id.data(), seq_id.data(),
           b->seq, nullptr, b->output};
  if (layout_changed) {
    u.pos = reinterpret_cast<const int32_t *>(uintptr_t{8});  // what used to be a pointer is now something else
    u.token = nullptr;
  }
  if (rebuild) rebuild_graph(c);
  _ZN16llm_graph_result10set_inputsEPK12llama_ubatch(&c->results[n_outputs > 0 ? 1 : 0], &u);

  Tensor h{"embd", {}, b->n};
  for (uint32_t i = 0; i < b->n; i++) h.data.insert(h.data.end(), fake_n_embd, static_cast<float>(b->tokens[i]));
  eval(*c->sched, h);
  for (uint32_t layer = 0; layer < fake_n_layer; layer++) {
    if (layer + 1 == fake_n_layer) {
      Tensor kept{"", {}, static_cast<int64_t>(n_outputs)};
      for (uint32_t i = 0; i < b->n; i++)
        if (b->output[i] != 0)
          kept.data.insert(kept.data.end(), &h.data[i * fake_n_embd], &h.data[i * fake_n_embd] + fake_n_embd);
      h = kept;
    }
    for (float & x : h.data) x += 1.0f;
    h.name = "ffn_out-" + std::to_string(layer);
    eval(*c->sched, h);
    h.name = "l_out-" + std::to_string(layer);
    eval(*c->sched, h);
    Tensor view = h;
    view.name += " (view)";
    eval(*c->sched, view);
  }
  ggml_backend_sched_graph_compute_async(c->sched, nullptr);  // computed above: what counts is that it is called after
  for (size_t i = 0; i < n_outputs; i++) out[i] = h.data[i * fake_n_embd];
  llama_synchronize(context);
}

void fail_rebuild(void * context) {
  rebuild_graph(static_cast<Context *>(context));
}

void shift(void * context) {
  _ZN16llm_graph_result10set_inputsEPK12llama_ubatch(&static_cast<Context *>(context)->results[0], nullptr);
}

bool has_callback(void * context) {
  return static_cast<Context *>(context)->sched->callback != nullptr;
}

void change_layout() {
  layout_changed = true;
}

const FakeApi api = {context_new, context_free, decode, fail_rebuild, shift, has_callback, change_layout};

}  // namespace

EXPORT const FakeApi * fake_llama_api() {
  return &api;
}
