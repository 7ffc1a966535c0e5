// Each sequence under a program of its own, in one batch, and as if it were alone.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <thread>

#include "check.hpp"
#include "hook.hpp"
#include "random_spec.hpp"
#include "spec.hpp"

using namespace test;

namespace {

constexpr uint32_t n_embd = 8, n_layer = 4;

/// Adds `value` to every element at these layers.
Bytes adds(float value, const std::vector<int32_t> & layers = {0, 1, 2, 3}) {
  Spec s;
  s.n_embd = n_embd;
  s.n_layer = n_layer;
  const uint32_t r = s.add_rule(SCOPE_OP_AMPLIFY);
  for (const int32_t layer : layers) s.add_delta(layer, r, SCOPE_DELTA_ADD, Row(n_embd, value));
  return s.blob();
}

struct MixedColumn {
  int32_t seq, position;
  bool output;
  std::map<int32_t, Row> h;  ///< by layer
};

/// Runs an ubatch; the columns' residuals become what the hook made of them.
void run(HookUnderTest & hook, std::vector<MixedColumn> & columns, uint32_t width, bool last_outputs_only) {
  std::vector<int32_t> position, seq;
  std::vector<int8_t> output;
  for (const MixedColumn & c : columns) {
    position.push_back(c.position);
    seq.push_back(c.seq);
    output.push_back(c.output ? 1 : 0);
  }
  const auto n = static_cast<uint32_t>(columns.size());
  CHECK_EQ(scope_hook_columns(hook.hook, n, position.data(), position.data(), seq.data(), output.data()), 0);
  for (int32_t layer = -1; layer < static_cast<int32_t>(n_layer); layer++) {
    const bool outputs_only = last_outputs_only && layer + 1 == static_cast<int32_t>(n_layer);
    Row h;
    for (const MixedColumn & c : columns)
      if (!outputs_only || c.output) h.insert(h.end(), c.h.at(layer).begin(), c.h.at(layer).end());
    CHECK(scope_hook_residual(hook.hook, layer, h.data(), static_cast<uint32_t>(h.size() / width)) >= 0);
    auto at = h.begin();
    for (MixedColumn & c : columns) {
      if (outputs_only && !c.output) continue;
      std::copy(at, at + width, c.h[layer].begin());
      at += width;
    }
  }
  scope_hook_end_ubatch(hook.hook);
}

bool same_bits(const Row & a, const Row & b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Events of one sequence, without what differs between two runs of the same.
std::vector<scope_event> of_sequence(std::vector<scope_event> events, int32_t seq) {
  std::vector<scope_event> out;
  for (scope_event e : events) {
    if (e.sequence != seq) continue;
    e.time_ns = 0;
    e.serial = 0;
    out.push_back(e);
  }
  return out;
}

/// Four sequences, three of them with a request and a program of their own, against each of them alone.
void compare_with_alone(uint64_t seed) {
  Random random(seed);
  const uint32_t width = 5 + random.below(30);
  const bool last_outputs_only = random.chance(0.5);
  std::vector<Bytes> blobs;
  for (int i = 0; i < 3; i++) blobs.push_back(random_spec(random, width).blob());
  if (random.chance(0.3)) blobs[2] = blobs[0];  // two sequences under one program

  HookUnderTest mixed(width, n_layer);
  std::vector<uint64_t> serials;
  for (const Bytes & blob : blobs) serials.push_back(static_cast<uint64_t>(mixed.hold(blob)));
  if (blobs[2] == blobs[0]) serials[2] = serials[0];
  CHECK(mixed.assign(serials) > 0);
  std::vector<std::unique_ptr<HookUnderTest>> alone;
  for (int32_t seq = 0; seq < 3; seq++) {
    alone.push_back(std::make_unique<HookUnderTest>(width, n_layer));
    CHECK(alone.back()->install(blobs[static_cast<size_t>(seq)]) > 0);
    const auto n_prompt = static_cast<int32_t>(1 + random.below(10));
    CHECK_EQ(scope_request_begin(mixed.hook, seq, 40 + static_cast<uint64_t>(seq), n_prompt), 0);
    CHECK_EQ(scope_request_begin(alone.back()->hook, seq, 40 + static_cast<uint64_t>(seq), n_prompt), 0);
  }

  int32_t next[4] = {0, 0, 0, 0};
  for (int ubatch = 0; ubatch < 8; ubatch++) {
    std::vector<MixedColumn> columns;
    for (uint32_t i = 0, n = 1 + random.below(10); i < n; i++) {
      const auto seq = static_cast<int32_t>(random.below(4));
      columns.push_back({seq, next[seq]++, random.chance(0.5), {}});
      for (int32_t layer = -1; layer < static_cast<int32_t>(n_layer); layer++)
        columns.back().h[layer] = random.row(width, 2.0f);
    }
    std::vector<MixedColumn> together = columns;
    run(mixed, together, width, last_outputs_only);
    for (int32_t seq = 0; seq < 4; seq++) {
      std::vector<MixedColumn> own;
      for (const MixedColumn & c : columns)
        if (c.seq == seq) own.push_back(c);
      if (seq < 3 && !own.empty()) run(*alone[static_cast<size_t>(seq)], own, width, last_outputs_only);
      size_t i = 0;
      for (const MixedColumn & c : together) {
        if (c.seq != seq) continue;
        for (const auto & [layer, h] : c.h) CHECK(same_bits(h, own[i].h.at(layer)));
        i++;
      }
    }
  }
  CHECK_EQ(mixed.stats().n_unmatched, 0u);
  for (int32_t seq = 0; seq < 3; seq++) {
    CHECK_EQ(scope_request_end(mixed.hook, seq), 0);
    CHECK_EQ(scope_request_end(alone[static_cast<size_t>(seq)]->hook, seq), 0);
  }
  const std::vector<scope_event> events = mixed.drain();
  for (int32_t seq = 0; seq < 3; seq++) {
    const auto got = of_sequence(events, seq);
    const auto want = of_sequence(alone[static_cast<size_t>(seq)]->drain(), seq);
    CHECK_EQ(got.size(), want.size());
    if (got.size() == want.size() && !got.empty())
      CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(scope_event)) == 0);
  }
}

float column(const Row & h, uint32_t c) {
  return h[c * n_embd];
}

}  // namespace

TEST(assign, every_sequence_is_bit_for_bit_as_alone) {
  for (uint64_t seed = 0; seed < 200; seed++) compare_with_alone(seed);
}

TEST(assign, what_runs_beside_it_changes_no_bit_of_a_sequence) {
  const auto neighbour_steers = [](float value) {
    HookUnderTest hook(n_embd, n_layer);
    const auto a = static_cast<uint64_t>(hook.hold(adds(value)));
    const auto b = static_cast<uint64_t>(hook.hold(adds(0.1f, {1})));
    CHECK(hook.assign({a, b}) > 0);
    scope_request_begin(hook.hook, 0, 1, 1);
    scope_request_begin(hook.hook, 1, 2, 1);
    const int32_t pos[] = {0, 0, 1, 1}, seq[] = {0, 1, 1, 0};
    CHECK_EQ(scope_hook_columns(hook.hook, 4, pos, pos, seq, nullptr), 0);
    Row h(4 * n_embd, 0.3f);
    CHECK_EQ(scope_hook_residual(hook.hook, 1, h.data(), 4), 1);
    CHECK(column(h, 0) == 0.3f + value && column(h, 3) == 0.3f + value);
    return Row(h.begin() + n_embd, h.begin() + 3 * n_embd);
  };
  CHECK(same_bits(neighbour_steers(1.0f), neighbour_steers(-700.0f)));
}

TEST(assign, a_program_with_nothing_at_a_layer_leaves_it_unread) {
  HookUnderTest hook(n_embd, n_layer);
  const auto a = static_cast<uint64_t>(hook.hold(adds(1, {0})));
  const auto b = static_cast<uint64_t>(hook.hold(adds(2, {2})));
  CHECK(hook.assign({a, b, 0}) > 0);
  for (int32_t seq = 0; seq < 3; seq++) scope_request_begin(hook.hook, seq, 1, 1);
  const int32_t pos[] = {0, 0, 0, 0}, seq[] = {0, 1, 2, 3};
  scope_hook_columns(hook.hook, 4, pos, pos, seq, nullptr);
  CHECK(hook.hook->wants(0) && !hook.hook->wants(1) && hook.hook->wants(2) && !hook.hook->wants(3));
  scope::Rows rows;
  CHECK(hook.hook->visit(0, 4, rows));
  CHECK_EQ(rows.first, 0u);
  CHECK_EQ(rows.n, 1u);
  Row h(4 * n_embd, 0.0f);
  CHECK_EQ(scope_hook_residual(hook.hook, 2, h.data(), 4), 1);
  CHECK(column(h, 0) == 0 && column(h, 1) == 2 && column(h, 2) == 0 && column(h, 3) == 0);
  // A sequence that is assigned nothing is under serial 0; one without a request is nobody's.
  scope_hook_end_ubatch(hook.hook);
  scope_span span;
  CHECK_EQ(scope_sequence_spans(hook.hook, 1, &span, 1), 1u);
  CHECK_EQ(span.serial, b);
  CHECK_EQ(scope_sequence_spans(hook.hook, 2, &span, 1), 1u);
  CHECK_EQ(span.serial, 0u);
  CHECK_EQ(hook.stats().n_unsteered_columns, 1u);
}

TEST(assign, others_run_under_the_default_and_spans_tell_the_change) {
  HookUnderTest hook(n_embd, n_layer);
  const auto a = static_cast<uint64_t>(hook.hold(adds(1)));
  const auto b = static_cast<uint64_t>(hook.hold(adds(2)));
  CHECK_EQ(hook.assign({a}, b), 1);
  scope_request_begin(hook.hook, 0, 1, 1);
  scope_request_begin(hook.hook, 7, 2, 1);
  hook.columns(7, 0, 2);
  CHECK_EQ(scope_hook_acknowledged(hook.hook), b);
  CHECK_EQ(scope_hook_assignment(hook.hook), 1u);
  CHECK_EQ(hook.assign({a}, a), 2);
  CHECK_EQ(scope_hook_in_force(hook.hook), 0);  // an ubatch is open under the first
  hook.columns(7, 2, 3);
  CHECK_EQ(scope_hook_assignment(hook.hook), 2u);
  CHECK_EQ(scope_hook_in_force(hook.hook), 1);
  scope_span spans[3];
  CHECK_EQ(scope_sequence_spans(hook.hook, 7, spans, 3), 2u);
  CHECK_EQ(spans[0].serial, b);
  CHECK_EQ(spans[1].from_position, 2);
  CHECK_EQ(spans[1].serial, a);
}

TEST(assign, refuses_serials_that_are_not_there) {
  HookUnderTest hook(n_embd, n_layer);
  const auto a = static_cast<uint64_t>(hook.hold(adds(1)));
  CHECK_EQ(hook.assign({99}), SCOPE_E_STATE);
  CHECK_EQ(hook.assign({a}, 99), SCOPE_E_STATE);
  CHECK_EQ(hook.assign({a}), 1);
  CHECK_EQ(scope_hook_release(hook.hook, a), SCOPE_OK);
  CHECK_EQ(scope_hook_release(hook.hook, a), SCOPE_E_STATE);
  CHECK_EQ(hook.assign({a, a}), 2);  // still in the assignment before
  CHECK_EQ(hook.assign({}), 3);
  CHECK_EQ(hook.assign({a}), SCOPE_E_STATE);
  const int32_t beyond = 1 << 20;
  CHECK_EQ(scope_hook_assign(hook.hook, 0, &beyond, &a, 1, nullptr, nullptr, 0), SCOPE_E_INVALID);
  CHECK_EQ(scope_hook_assign(hook.hook, 0, nullptr, nullptr, 1, nullptr, nullptr, 0), SCOPE_E_INVALID);
  scope_program * program = nullptr;
  const Bytes blob = adds(1);
  CHECK_EQ(scope_program_load(blob.data(), blob.size(), &program, nullptr, 0), SCOPE_OK);
  char err[200];
  CHECK_EQ(scope_hook_hold(hook.hook, program, a, err, sizeof err), SCOPE_E_STATE);
  CHECK(err[0] != '\0');
  scope_program_free(program);
  // What is installed for all can go on beside what is assigned.
  const auto all = static_cast<uint64_t>(hook.install(adds(3)));
  const auto b = static_cast<uint64_t>(hook.hold(adds(4)));
  CHECK(hook.assign({b}, all) > 0);
}

TEST(assign, a_column_of_two_requests_is_steered_only_under_one_program) {
  HookUnderTest hook(n_embd, n_layer);
  const auto a = static_cast<uint64_t>(hook.hold(adds(1, {0})));
  const auto b = static_cast<uint64_t>(hook.hold(adds(2, {0})));
  const auto decode = [&](const std::vector<uint64_t> & serials) {
    CHECK(hook.assign(serials) > 0);
    scope_memory_clear(hook.hook);
    hook.hook->ubatch.columns = {{0, 0, 0, true}, {0, 1, 0, true}, {0, 0, 2, true}};
    hook.hook->ubatch.shared = {{0, 1}};
    hook.hook->begin(false);
    Row h(3 * n_embd, 0.0f);
    CHECK(scope_hook_residual(hook.hook, 0, h.data(), 3) >= 0);
    scope_hook_end_ubatch(hook.hook);
    return Row{column(h, 0), column(h, 1), column(h, 2)};
  };
  for (const int32_t seq : {0, 2}) scope_request_begin(hook.hook, seq, 1, 1);
  CHECK(decode({a, b, b}) == (Row{1, 1, 2}));  // sequence 1 has no request: it holds what was computed
  scope_request_begin(hook.hook, 1, 1, 1);
  CHECK(decode({a, a, b}) == (Row{1, 1, 2}));
  CHECK_EQ(hook.stats().n_unmatched, 0u);
  CHECK(decode({a, b, b}) == (Row{0, 1, 2}));
  CHECK_EQ(hook.stats().n_unmatched, 1u);
  scope_span span;
  scope_sequence_spans(hook.hook, 1, &span, 1);
  CHECK_EQ(span.serial, 0u);
  scope_request_end(hook.hook, 0);
  CHECK(decode({a, a, b}) == (Row{0, 0, 2}));  // the column is counted under its first sequence, which has no request
  CHECK_EQ(hook.stats().n_unmatched, 2u);
}

TEST(assign, a_hundred_programs_in_one_ubatch_and_thousands_over_time) {
  HookUnderTest hook(n_embd, n_layer);
  constexpr int32_t n = 100;
  std::vector<int32_t> pos(n), seq(n);
  for (int32_t i = 0; i < n; i++) {
    seq[static_cast<size_t>(i)] = i;
    scope_request_begin(hook.hook, i, 1, 1);
  }
  for (int32_t round = 0; round < 30; round++) {
    std::vector<uint64_t> serials;
    for (int32_t i = 0; i < n; i++)
      serials.push_back(static_cast<uint64_t>(hook.hold(adds(static_cast<float>(round * n + i), {2}))));
    CHECK(hook.assign(serials) > 0);
    for (const uint64_t s : serials) CHECK_EQ(scope_hook_release(hook.hook, s), SCOPE_OK);
    scope_memory_clear(hook.hook);
    CHECK_EQ(scope_hook_columns(hook.hook, n, pos.data(), pos.data(), seq.data(), nullptr), 0);
    Row h(n * n_embd, 0.0f);
    scope_hook_residual(hook.hook, 2, h.data(), n);
    scope_hook_end_ubatch(hook.hook);
    for (int32_t i = 0; i < n; i++) {
      CHECK(column(h, static_cast<uint32_t>(i)) == static_cast<float>(round * n + i));
      scope_span span;
      CHECK_EQ(scope_sequence_spans(hook.hook, i, &span, 1), 1u);
      CHECK_EQ(span.serial, serials[static_cast<size_t>(i)]);
    }
  }
}

TEST(assign, all_sequences_change_together_during_decode) {
  constexpr uint64_t n_rounds = 3000;
  HookUnderTest hook(n_embd, n_layer, 64);
  // Sequence 1's program always adds one more than sequence 0's.
  const auto publish = [&](uint64_t round) {
    const auto value = static_cast<float>(2 * round);
    const auto a = static_cast<uint64_t>(hook.hold(adds(value)));
    const auto b = static_cast<uint64_t>(hook.hold(adds(value + 1)));
    CHECK_EQ(hook.assign({a, b}), static_cast<int64_t>(round));
    scope_hook_release(hook.hook, a);
    scope_hook_release(hook.hook, b);
  };
  publish(1);
  for (int32_t seq = 0; seq < 2; seq++) scope_request_begin(hook.hook, seq, 1, 1);
  std::atomic<bool> done{false};
  std::atomic<uint64_t> n_torn{0}, n_changes{0};
  std::thread decode([&] {
    const int32_t seq[] = {0, 1, 0, 1};
    int32_t pos[] = {0, 0, 1, 1};
    float last = 0;
    while (!done.load()) {
      scope_hook_columns(hook.hook, 4, pos, pos, seq, nullptr);
      const auto value = static_cast<float>(2 * scope_hook_assignment(hook.hook));
      bool whole = value >= last;
      for (int32_t layer = 0; layer < static_cast<int32_t>(n_layer); layer++) {
        Row h(4 * n_embd, 0.0f);
        scope_hook_residual(hook.hook, layer, h.data(), 4);
        for (uint32_t c = 0; c < 4; c++) whole = whole && column(h, c) == value + static_cast<float>(seq[c]);
      }
      scope_hook_end_ubatch(hook.hook);
      for (int32_t & p : pos) p += 2;
      if (pos[0] > 200) {
        scope_memory_clear(hook.hook);
        for (int i = 0; i < 4; i++) pos[i] = i / 2;
      }
      n_torn += whole ? 0 : 1;
      n_changes += value != last ? 1 : 0;
      last = value;
    }
  });
  for (uint64_t round = 2; round <= n_rounds; round++) publish(round);
  while (scope_hook_assignment(hook.hook) != n_rounds) std::this_thread::yield();
  done = true;
  decode.join();
  CHECK_EQ(n_torn.load(), 0u);
  CHECK(n_changes.load() > 1);
  CHECK_EQ(scope_hook_collect(hook.hook), 0u);
}
