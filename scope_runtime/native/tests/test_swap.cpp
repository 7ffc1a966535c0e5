// Programs change under a running decode; no ubatch ever sees two of them, or one that was freed.
#include <atomic>
#include <thread>

#include "check.hpp"
#include "spec.hpp"

using namespace test;

namespace {

constexpr uint32_t n_embd = 8, n_layer = 4, n_columns = 3;

/// Adds the serial itself to every element at every layer, so that one element tells which program touched it.
Bytes adds(float value) {
  Spec s;
  s.n_embd = n_embd;
  s.n_layer = n_layer;
  const uint32_t r = s.add_rule(SCOPE_OP_AMPLIFY);
  for (int32_t layer = 0; layer < static_cast<int32_t>(n_layer); layer++)
    s.add_delta(layer, r, SCOPE_DELTA_ADD, Row(n_embd, value));
  return s.blob();
}

}  // namespace

TEST(swap, ten_thousand_programs_during_decode) {
  constexpr uint64_t n_programs = 10000;
  HookUnderTest hook(n_embd, n_layer, 64);
  CHECK_EQ(hook.install(adds(1.0f)), 1);
  scope_request_begin(hook.hook, 0, 1, 1);
  std::atomic<bool> done{false};
  std::atomic<uint64_t> n_torn{0}, n_ubatches{0}, n_seen{0};

  std::thread decode([&] {
    uint64_t last = 0;
    int32_t position = 0;
    while (!done.load()) {
      hook.columns(0, position, position + static_cast<int32_t>(n_columns));
      const uint64_t serial = scope_hook_acknowledged(hook.hook);
      bool whole = serial >= last;
      for (int32_t layer = 0; layer < static_cast<int32_t>(n_layer); layer++) {
        Row h(n_columns * n_embd, 0.0f);
        scope_hook_residual(hook.hook, layer, h.data(), n_columns);
        for (const float x : h) whole = whole && x == static_cast<float>(serial);
      }
      scope_hook_end_ubatch(hook.hook);
      position += static_cast<int32_t>(n_columns);
      if (position > 300) {
        scope_memory_clear(hook.hook);
        position = 0;
      }
      n_torn += whole ? 0 : 1;
      n_ubatches++;
      n_seen += serial != last ? 1 : 0;
      last = serial;
    }
  });
  for (uint64_t serial = 2; serial <= n_programs; serial++) {
    hook.install(adds(static_cast<float>(serial)));
    if (serial % 7 == 0) CHECK(scope_hook_collect(hook.hook) <= 1);
  }
  // The decode thread must come to see the last one.
  while (scope_hook_acknowledged(hook.hook) != n_programs) std::this_thread::yield();
  done = true;
  decode.join();
  CHECK_EQ(n_torn.load(), 0u);
  CHECK(n_seen.load() > 1);
  CHECK(n_ubatches.load() > 1);
  CHECK_EQ(scope_hook_collect(hook.hook), 0u);
}

TEST(swap, a_program_stays_for_the_whole_ubatch) {
  HookUnderTest hook(n_embd, n_layer);
  hook.install(adds(1.0f));
  scope_request_begin(hook.hook, 0, 1, 1);
  hook.columns(0, 0, 1);
  hook.install(adds(2.0f));
  CHECK_EQ(scope_hook_collect(hook.hook), 1u);  // still pinned
  Row h(n_embd, 0.0f);
  scope_hook_residual(hook.hook, 0, h.data(), 1);
  CHECK(h[0] == 1.0f);
  hook.columns(0, 1, 2);
  CHECK_EQ(scope_hook_acknowledged(hook.hook), 2u);
  CHECK_EQ(scope_hook_collect(hook.hook), 0u);
  h.assign(n_embd, 0.0f);
  scope_hook_residual(hook.hook, 0, h.data(), 1);
  CHECK(h[0] == 2.0f);
}

TEST(swap, refuses_what_does_not_fit_or_was_used) {
  HookUnderTest hook(n_embd, n_layer);
  const Bytes blob = adds(1.0f);
  CHECK_EQ(hook.install(blob), 1);
  scope_program * program = nullptr;
  CHECK_EQ(scope_program_load(blob.data(), blob.size(), &program, nullptr, 0), SCOPE_OK);
  char err[200];
  for (const uint64_t serial : {uint64_t{0}, uint64_t{1}, UINT64_MAX}) {
    CHECK_EQ(scope_hook_install(hook.hook, program, serial, err, sizeof err), SCOPE_E_STATE);
    CHECK(err[0] != '\0');
  }
  HookUnderTest other(n_embd, n_layer + 1);
  CHECK_EQ(scope_hook_install(other.hook, program, 9, err, sizeof err), SCOPE_E_MISMATCH);
  scope_program_free(program);
  // Nothing is a program too.
  CHECK_EQ(scope_hook_install(hook.hook, nullptr, 2, err, sizeof err), SCOPE_OK);
  scope_request_begin(hook.hook, 0, 1, 1);
  hook.columns(0, 0, 1);
  Row h(n_embd, 3.0f);
  CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 1), 0);
  scope_span span;
  CHECK_EQ(scope_sequence_spans(hook.hook, 0, &span, 1), 1u);
  CHECK_EQ(span.serial, 2u);
}

TEST(swap, each_is_counted_and_timed) {
  HookUnderTest hook(n_embd, n_layer, 64);
  scope_hook_stats stats;
  for (uint64_t n = 1; n <= 3; n++) {
    CHECK_EQ(hook.install(adds(1.0f)), static_cast<int64_t>(n));
    scope_hook_get_stats(hook.hook, &stats);
    CHECK_EQ(stats.n_swaps, n);
    CHECK(stats.swap_ns <= stats.swap_ns_max);
    CHECK(stats.swap_ns_max > 0);
  }
  CHECK(scope_hook_install(hook.hook, nullptr, 3, nullptr, 0) != SCOPE_OK);  // a serial that was used
  scope_hook_get_stats(hook.hook, &stats);
  CHECK_EQ(stats.n_swaps, uint64_t{3});
}
