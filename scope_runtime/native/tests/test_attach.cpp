// Attaching to llama.cpp, with a fake one whose calls into itself come to us first, as the real one's do.
//
// Whether the ubatch's layout is proved is known per process: test_layout.cpp, which breaks it, runs last.
#include <dlfcn.h>

#include <string>

#include "attach_fixture.hpp"
#include "check.hpp"
#include "hook.hpp"

extern "C" {
void llama_memory_clear(void * memory, bool data);
bool llama_memory_seq_rm(void * memory, int32_t seq, int32_t p0, int32_t p1);
void llama_memory_seq_cp(void * memory, int32_t src, int32_t dst, int32_t p0, int32_t p1);
void llama_memory_seq_keep(void * memory, int32_t seq);
void llama_memory_seq_add(void * memory, int32_t seq, int32_t p0, int32_t p1, int32_t delta);
void llama_memory_seq_div(void * memory, int32_t seq, int32_t p0, int32_t p1, int divisor);
}

using namespace test;

namespace {

int n_owner_calls = 0;
bool owner_callback(void *, bool ask, void *) {
  n_owner_calls += ask ? 0 : 1;
  return true;
}

}  // namespace

TEST(attach, says_what_is_missing) {
  char err[400];
  void * libc = dlopen("libc.so.6", RTLD_NOW);
  CHECK_EQ(scope_attach(libc, libc, err, sizeof err), SCOPE_E_MISSING);
  CHECK(std::string(err).find("ggml_backend_sched_set_eval_callback") != std::string::npos);
}

TEST(attach, columns_count_only_once_they_are_proved) {
  Engine e;
  e.install(adds(100, 1));
  scope_request_begin(e.hook, 0, 1, 1);
  CHECK(decode(e.context, 0, 3, true) == unsteered);
  CHECK_EQ(e.attached(), uint32_t{SCOPE_ATTACH_CALLBACK});
  e.prove();
  CHECK_EQ(e.attached(), SCOPE_ATTACH_CALLBACK | SCOPE_ATTACH_COLUMNS);
  CHECK(decode(e.context, 0, 3, true) == unsteered + 100);
  CHECK_EQ(e.stats().n_unmatched, 0u);
}

TEST(attach, every_block_and_zero_rows_at_the_last) {
  for (int32_t layer = 0; layer < static_cast<int32_t>(fake_n_layer); layer++) {
    Engine e;
    e.prove();
    e.install(adds(100, layer));
    scope_request_begin(e.hook, 0, 1, 1);
    CHECK(decode(e.context, 0, 3, true) == unsteered + 100);
    const int32_t token[] = {10, 10}, pos[] = {3, 4}, seq[] = {0, 0};
    const int8_t output[] = {0, 0};
    const FakeBatch no_outputs{2, token, pos, seq, output};
    fake().decode(e.context, &no_outputs, true, nullptr);
    scope_hook_end_ubatch(e.hook);
    CHECK_EQ(e.stats().n_unmatched, 0u);
    CHECK_EQ(e.stats().n_residuals, 2u);
  }
}

TEST(attach, the_embedding_has_to_be_named) {
  Engine e;
  e.prove();
  e.install(adds(100, -1));
  scope_request_begin(e.hook, 0, 1, 1);
  CHECK(decode(e.context, 0, 1, true) == unsteered);
  scope_hook_end_ubatch(e.hook);
  CHECK_EQ(e.stats().n_unmatched, 1u);  // asked for and never seen
  scope_hook_embedding_node(e.hook, "embd");
  CHECK(decode(e.context, 1, 2, true) == unsteered + 100);
}

TEST(attach, a_reused_graph_follows_the_program) {
  Engine e;
  e.prove();
  scope_request_begin(e.hook, 0, 1, 1);
  CHECK(decode(e.context, 0, 2, true) == unsteered);
  CHECK(!fake().has_callback(e.context));  // nothing wanted: no callback, though the graph was built with ours
  e.install(adds(5, 0));
  CHECK(decode(e.context, 2, 3, false) == unsteered + 5);
  CHECK(fake().has_callback(e.context));
  e.install(adds(7, 2));
  CHECK(decode(e.context, 3, 4, false) == unsteered + 7);
  e.install(Bytes([] {
    Spec s;
    s.n_embd = fake_n_embd;
    s.n_layer = fake_n_layer;
    return s.blob();
  }()));
  CHECK(decode(e.context, 4, 5, false) == unsteered);
  CHECK(!fake().has_callback(e.context));
  scope_span spans[8];
  CHECK_EQ(scope_sequence_spans(e.hook, 0, spans, 8), 4u);
}

TEST(attach, sequences_without_a_request_are_left_alone) {
  Engine e;
  e.prove();
  e.install(adds(100, 1));
  scope_request_begin(e.hook, 1, 1, 1);
  CHECK(decode(e.context, 0, 2, true, 0) == unsteered);
  CHECK(!fake().has_callback(e.context));
  CHECK(decode(e.context, 0, 2, false, 1) == unsteered + 100);
  const int32_t token[] = {10, 20}, pos[] = {2, 2}, seq[] = {0, 1};
  const int8_t output[] = {1, 1};
  const FakeBatch both{2, token, pos, seq, output};
  float out[2];
  fake().decode(e.context, &both, true, out);
  CHECK(out[0] == unsteered);
  CHECK(out[1] == unsteered + 110);
}

TEST(attach, other_contexts_are_as_without_us) {
  Engine e;
  e.prove();
  e.install(adds(100, 1));
  scope_request_begin(e.hook, 0, 1, 1);
  void * plain = fake().context_new(nullptr, nullptr);
  void * own = fake().context_new(owner_callback, nullptr);
  n_owner_calls = 0;
  for (int round = 0; round < 3; round++) {
    const bool rebuild = round != 1;
    CHECK(decode(plain, round, round + 1, rebuild) == unsteered);
    CHECK(!fake().has_callback(plain));
    CHECK(decode(own, round, round + 1, rebuild) == unsteered);
    CHECK(decode(e.context, round, round + 1, rebuild) == unsteered + 100);
    fake().shift(plain);
    fake().shift(e.context);
  }
  CHECK_EQ(n_owner_calls, 30);  // every node, also those that we would not want
  CHECK_EQ(e.stats().n_ubatches, 4u);
  fake().context_free(plain);
  fake().context_free(own);
}

TEST(attach, a_rebuild_that_fails_binds_nothing) {
  Engine e;
  e.prove();
  e.install(adds(100, 1));
  scope_request_begin(e.hook, 0, 1, 1);
  void * other = fake().context_new(nullptr, nullptr);
  decode(other, 0, 1, true);
  CHECK(decode(e.context, 0, 1, true) == unsteered + 100);
  fake().fail_rebuild(other);
  CHECK(decode(e.context, 1, 2, false) == unsteered + 100);
  fake().fail_rebuild(e.context);
  CHECK(decode(other, 1, 2, false) == unsteered);
  CHECK(decode(e.context, 2, 3, false) == unsteered + 100);
  CHECK_EQ(e.stats().n_ubatches, 4u);
  fake().context_free(other);
}

TEST(attach, contexts_come_and_go) {
  for (int round = 0; round < 20; round++) {
    void * plain = fake().context_new(nullptr, nullptr);
    CHECK(decode(plain, 0, 1, true) == unsteered);
    Engine e;
    e.prove();
    e.install(adds(100, 1));
    scope_request_begin(e.hook, 0, 1, 1);
    CHECK(decode(e.context, 0, 1, true) == unsteered + 100);
    CHECK(decode(plain, 1, 2, false) == unsteered);
    fake().context_free(plain);
  }
}

TEST(attach, memory_functions_take_note_and_pass_on) {
  Engine e;
  e.prove();
  void * memory = memory_of(e.context);
  decode(e.context, 0, 6, true);
  scope_span s;
  const auto end = [&](int32_t seq) { return scope_sequence_spans(e.hook, seq, &s, 1) == 0 ? -1 : s.to_position; };
  CHECK_EQ(e.attached() & SCOPE_ATTACH_MEMORY, 0u);
  CHECK(llama_memory_seq_rm(memory, 0, 5, -1));
  CHECK_EQ(end(0), 5);
  CHECK(e.attached() & SCOPE_ATTACH_MEMORY);
  CHECK(!llama_memory_seq_rm(memory, 0, 99, -1));
  llama_memory_seq_cp(memory, 0, 1, 0, -1);
  CHECK_EQ(end(1), 5);
  llama_memory_seq_add(memory, 1, 0, -1, 3);
  CHECK_EQ(end(1), 8);
  llama_memory_seq_div(memory, 1, 0, -1, 2);
  CHECK_EQ(end(1), 4);
  llama_memory_seq_keep(memory, 1);
  CHECK_EQ(end(0), -1);
  llama_memory_clear(memory, true);
  CHECK_EQ(end(1), -1);
  CHECK_EQ(*static_cast<int *>(memory), 7);
  // A restore inside the library: the plain function calls the one with flags, and that call comes to us.
  using Set = size_t(void *, const uint8_t *, size_t, int32_t);
  const uint8_t data = 0;
  reinterpret_cast<Set *>(dlsym(library(), "llama_state_seq_set_data"))(e.context, &data, 1, 0);
  CHECK_EQ(end(0), 5);
  CHECK_EQ(s.serial, UINT64_MAX);
  int other = 0;
  llama_memory_clear(&other, true);
  CHECK_EQ(other, 1);
  CHECK_EQ(end(0), 5);
}

TEST(attach, begun_by_hand_and_seen_is_one_ubatch) {
  Engine e;
  e.prove();
  e.install(adds(100, 1));
  scope_request_begin(e.hook, 0, 1, 1);
  const int32_t token[] = {10}, pos[] = {0}, seq[] = {0};
  const auto before = e.stats().n_ubatches;
  CHECK_EQ(scope_hook_columns(e.hook, 1, token, pos, seq, nullptr), 0);
  CHECK(decode(e.context, 0, 1, true) == unsteered + 100);
  CHECK_EQ(e.stats().n_ubatches, before + 1);
  CHECK_EQ(e.stats().n_unmatched, 0u);
}

TEST(attach, names_are_recorded_and_chained_callbacks_called) {
  Engine e;
  e.prove();
  scope_hook_record_names(e.hook, 1);
  scope_hook_chain(e.hook, reinterpret_cast<void *>(&owner_callback), nullptr);
  n_owner_calls = 0;
  decode(e.context, 0, 1, true);
  char names[200];
  const size_t n = scope_hook_names(e.hook, names, sizeof names);
  CHECK(std::string(names, n) == "embd\nl_out-0\nl_out-1\nl_out-2\n");
  CHECK_EQ(scope_hook_names(e.hook, names, 7), 5u);
  CHECK_EQ(n_owner_calls, 10);
  scope_hook_record_names(e.hook, 0);
  scope_hook_chain(e.hook, nullptr, nullptr);
  decode(e.context, 1, 2, false);
  CHECK(!fake().has_callback(e.context));
}

TEST(attach, a_default_hook_takes_one_context_that_nobody_hooked) {
  HookUnderTest hook(fake_n_embd, fake_n_layer);
  hook.install(adds(100, 1));
  scope_request_begin(hook.hook, 0, 1, 1);
  CHECK_EQ(scope_attach_default(hook.hook), SCOPE_OK);
  void * first = fake().context_new(owner_callback, nullptr);
  void * second = fake().context_new(nullptr, nullptr);
  n_owner_calls = 0;
  CHECK(decode(first, 0, 1, true) == unsteered + 100);
  CHECK_EQ(n_owner_calls, 10);
  CHECK(decode(second, 0, 1, true) == unsteered);
  CHECK(decode(first, 1, 2, false) == unsteered + 100);
  CHECK(decode(first, 2, 3, true) == unsteered + 100);
  fake().context_free(first);
  CHECK(decode(second, 1, 2, false) == unsteered + 100);  // the place is free again
  CHECK_EQ(scope_attach_default(nullptr), SCOPE_OK);
  CHECK(decode(second, 2, 3, true) == unsteered);
  fake().context_free(second);
}
