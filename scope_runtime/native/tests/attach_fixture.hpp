// A hook on the fake llama.cpp: what the tests of attaching share.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "check.hpp"
#include "fake_llama.hpp"
#include "spec.hpp"

namespace test {

inline void * library() {
  static void * handle = dlopen(SCOPE_FAKE_LLAMA, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::abort();
  }
  return handle;
}

inline const FakeApi & fake() {
  using Get = const FakeApi *();
  static const FakeApi * api = reinterpret_cast<Get *>(dlsym(library(), "fake_llama_api"))();
  return *api;
}

inline void * memory_of(void * context) {
  using Get = void *(void *);
  return reinterpret_cast<Get *>(dlsym(library(), "llama_get_memory"))(context);
}

/// Adds `value` after block `layer`.
inline Bytes adds(float value, int32_t layer) {
  Spec s;
  s.n_embd = fake_n_embd;
  s.n_layer = fake_n_layer;
  s.add_delta(layer, s.add_rule(SCOPE_OP_AMPLIFY), SCOPE_DELTA_ADD, Row(fake_n_embd, value));
  return s.blob();
}

struct Engine : HookUnderTest {
  Engine() : HookUnderTest(fake_n_embd, fake_n_layer) {
    CHECK_EQ(scope_attach(library(), library(), nullptr, 0), SCOPE_OK);
    context = fake().context_new(reinterpret_cast<FakeCallback>(scope_hook_callback()), hook);
    CHECK_EQ(scope_hook_bind_memory(hook, memory_of(context), nullptr, 0), SCOPE_OK);
  }
  ~Engine() { fake().context_free(context); }

  uint32_t attached() const { return scope_hook_attached(hook); }
  void prove() {
    const int32_t token[] = {3, 4}, pos[] = {0, 1}, seq[] = {0, 0};
    const int8_t output[] = {0, 1};
    scope_hook_expect_columns(hook, 2, token, pos, seq, output);
    const FakeBatch b{2, token, pos, seq, output};
    float out[2];
    fake().decode(context, &b, true, out);
    scope_memory_clear(hook);
  }

  void * context;
};

/// One sequence's tokens, all of them 10, the last one output.
inline float decode(void * context, int32_t from, int32_t to, bool rebuild, int32_t seq = 0) {
  std::vector<int32_t> token, pos, sequence;
  std::vector<int8_t> output;
  for (int32_t p = from; p < to; p++) {
    token.push_back(10);
    pos.push_back(p);
    sequence.push_back(seq);
    output.push_back(p + 1 == to ? 1 : 0);
  }
  const FakeBatch b{static_cast<uint32_t>(token.size()), token.data(), pos.data(), sequence.data(), output.data()};
  float out = 0;
  fake().decode(context, &b, rebuild, &out);
  return out;
}

constexpr float unsteered = 10.0f + static_cast<float>(fake_n_layer);

}  // namespace test
