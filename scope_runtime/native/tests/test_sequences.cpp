// What a sequence remembers, and how it follows rollback, shift, copy and restore.
#include <algorithm>
#include <map>
#include <string>

#include "check.hpp"
#include "hook.hpp"
#include "log.hpp"
#include "spec.hpp"

using namespace test;

namespace {

constexpr int32_t layer = 1;

/// One feature whose activation is the residual's mean, an alert above 1, and a mute of it.
Spec watching(uint32_t actions = 0, uint32_t for_tokens = 1) {
  Spec s;
  const uint32_t f = s.add_feature(layer, Row(s.n_embd, 1.0f / static_cast<float>(s.n_embd)));
  const uint32_t t = s.add_trigger({f}, 0, 1.0f);
  s.triggers[t].t.for_tokens = for_tokens;
  const uint32_t alert = s.add_rule(SCOPE_OP_ALERT);
  s.rules[alert].alert = t;
  s.rules[alert].actions = actions;
  s.add_delta(layer, s.add_rule(SCOPE_OP_MUTE), SCOPE_DELTA_SCALE, Row(s.n_embd, 0.01f), -1.0f, f);
  return s;
}

struct Fixture : HookUnderTest {
  explicit Fixture(const Spec & spec = watching()) : HookUnderTest(spec.n_embd, spec.n_layer) { install(spec.blob()); }

  void begin(int32_t seq = 0, int32_t n_prompt = 1) { CHECK_EQ(scope_request_begin(hook, seq, 42, n_prompt), 0); }
  void decode(int32_t from, const std::vector<float> & values, int32_t seq = 0) { run(seq, from, layer, values); }

  /// Kinds and positions of the events that are out, as "F3 R5 S S E".
  std::string events() {
    std::string out;
    for (const scope_event & e : drain()) {
      if (!out.empty()) out += ' ';
      out += " FRSED"[e.kind];
      if (e.kind != SCOPE_EVENT_SUMMARY && e.kind != SCOPE_EVENT_REQUEST_END) out += std::to_string(e.first_position);
    }
    return out;
  }

  /// "0-3:1 3-5:2"; an unknown serial is "?".
  std::string spans(int32_t seq = 0) {
    scope_span out[64];
    const size_t n = scope_sequence_spans(hook, seq, out, 64);
    std::string text;
    for (size_t i = 0; i < n; i++) {
      if (i > 0) text += ' ';
      text += std::to_string(out[i].from_position) + "-" + std::to_string(out[i].to_position) + ":" +
              (out[i].serial == UINT64_MAX ? "?" : std::to_string(out[i].serial));
    }
    return text;
  }

  scope_request_state status(int32_t seq = 0) {
    scope_request_state s{};
    CHECK_EQ(scope_request_status(hook, seq, &s), 0);
    return s;
  }

  /// The request's summary of one rule.
  scope_event summary(uint32_t rule, int32_t seq = 0) {
    drain();
    CHECK_EQ(scope_request_end(hook, seq), 0);
    scope_event found{};
    for (const scope_event & e : drain())
      if (e.kind == SCOPE_EVENT_SUMMARY && e.rule == rule) found = e;
    return found;
  }

  float activation(int32_t position, int32_t seq = 0) {
    float z[2] = {-99, -99};
    return scope_sequence_measured(hook, seq, position, z, nullptr, nullptr, 2) == 0 ? -99 : z[0];
  }
};

#define CHECK_TEXT(got, want)                                                                             \
  do {                                                                                                    \
    const std::string check_got = (got);                                                                  \
    if (check_got != (want)) check::failed(__FILE__, __LINE__, #got ": \"" + check_got + "\" != " #want); \
  } while (0)

}  // namespace

TEST(sequences, spans_name_the_program_of_every_position) {
  Fixture f;
  f.decode(0, {0, 0});  // no request: no program
  f.begin();
  f.decode(2, {0, 0, 0});
  f.install(watching().blob());
  f.decode(5, {0});
  CHECK_TEXT(f.spans(), "0-2:0 2-5:1 5-6:2");
  f.decode(4, {0});  // decoded again: replaced
  CHECK_TEXT(f.spans(), "0-2:0 2-4:1 4-6:2");
  scope_span one;
  CHECK_EQ(scope_sequence_spans(f.hook, 0, &one, 1), 3u);
  CHECK_EQ(one.to_position, 2);
  CHECK_EQ(scope_sequence_spans(f.hook, 9, &one, 1), 0u);
  scope_memory_seq_rm(f.hook, 0, 3, 5);
  CHECK_TEXT(f.spans(), "0-2:0 2-3:1 5-6:2");
}

TEST(sequences, an_alert_is_held_back_until_its_token_is_confirmed) {
  Fixture f;
  f.begin();
  f.decode(0, {0, 2});
  CHECK_TEXT(f.events(), "");
  CHECK_EQ(f.status().n_firing, 1u);
  f.decode(2, {2});
  CHECK_TEXT(f.events(), "F1");
  f.decode(3, {0});
  CHECK_TEXT(f.events(), "");
  CHECK_EQ(f.status().n_firing, 0u);
  CHECK_EQ(scope_request_end(f.hook, 0), 0);
  CHECK_TEXT(f.events(), "R3 S S E");
}

TEST(sequences, a_rejected_token_leaves_nothing_behind) {
  Fixture f(watching(SCOPE_ACTION_ABORT));
  f.begin();
  f.decode(0, {0, 0});
  f.decode(2, {0, 3, 0});
  CHECK_EQ(f.status().abort, 1u);
  CHECK_EQ(f.status().abort_position, 3);
  CHECK_EQ(f.status().abort_rule, 0u);
  CHECK_EQ(f.status().abort_serial, 1u);
  scope_memory_seq_rm(f.hook, 0, 3, -1);
  CHECK_EQ(f.status().abort, 0u);
  f.decode(3, {0});
  f.decode(4, {0});
  CHECK_TEXT(f.events(), "");
  CHECK_TEXT(f.spans(), "0-5:1");
  const scope_event s = f.summary(0);
  CHECK_EQ(s.n_tokens, 5u);
  CHECK_EQ(s.n_fired, 0u);
  CHECK_NEAR(double{s.activation_max}, 0.0, 1e-6);
}

TEST(sequences, decoding_again_without_removal_rejects_too) {
  Fixture f(watching(SCOPE_ACTION_ABORT));
  f.begin();
  f.decode(0, {0, 3});
  f.decode(1, {0});
  CHECK_EQ(f.status().abort, 0u);
  f.decode(2, {0});
  CHECK_TEXT(f.events(), "");
}

TEST(sequences, counting_goes_on_from_the_last_kept_token) {
  Fixture f(watching(0, 3));
  f.begin();
  f.decode(0, {2, 2, 0, 2});
  scope_memory_seq_rm(f.hook, 0, 2, -1);
  f.decode(2, {2});  // the third in a row of what is left
  CHECK_EQ(f.status().n_firing, 1u);
  scope_memory_seq_rm(f.hook, 0, 1, -1);
  f.decode(1, {2});
  CHECK_EQ(f.status().n_firing, 0u);
}

TEST(sequences, a_reused_prefix_keeps_its_state_and_its_measurements) {
  Fixture f(watching(0, 3));
  f.begin();
  f.decode(0, {2, 2});
  CHECK_EQ(scope_request_end(f.hook, 0), 0);
  f.begin();
  f.decode(2, {2});
  CHECK_EQ(f.status().n_firing, 1u);
  const scope_event s = f.summary(0);
  CHECK_EQ(s.n_tokens, 3u);
  CHECK_EQ(s.n_fired, 1u);
}

TEST(sequences, what_a_reused_prefix_set_off_it_sets_off_again) {
  Fixture f(watching(SCOPE_ACTION_ABORT));
  f.begin();
  f.decode(0, {0, 2, 0});
  CHECK_EQ(scope_request_end(f.hook, 0), 0);
  f.drain();
  f.begin();
  CHECK_EQ(f.status().abort_position, 1);
  f.decode(3, {0});
  CHECK_TEXT(f.events(), "F1 R2");
}

TEST(sequences, another_program_starts_from_nothing) {
  Fixture f(watching(0, 2));
  f.begin();
  f.decode(0, {2});
  f.install(watching(0, 2).blob());
  f.decode(1, {2});
  CHECK_EQ(f.status().n_firing, 0u);
  f.decode(2, {2});
  CHECK_EQ(f.status().n_firing, 1u);
  CHECK_EQ(scope_request_end(f.hook, 0), 0);
  CHECK_TEXT(f.events(), "F2 S S S S E");
}

TEST(sequences, images_between_tokens_do_not_reset_the_count) {
  Fixture f(watching(0, 2));
  f.begin();
  f.decode(0, {2});
  f.hook->commit();
  f.hook->ubatch.columns = {{-1, 1, 0, false}, {-1, 2, 0, false}};
  f.hook->begin(false, true);
  Row h(32, 5.0f);
  CHECK_EQ(scope_hook_residual(f.hook, layer, h.data(), 2), 0);
  f.decode(3, {2});
  CHECK_EQ(f.status().n_firing, 1u);
  CHECK_EQ(f.stats().n_unsteered_columns, 2u);
  CHECK_TEXT(f.spans(), "0-1:1 1-3:0 3-4:1");
}

TEST(sequences, a_context_shift_keeps_the_record_and_the_phase) {
  Spec spec = watching();
  spec.rules[1].phase = SCOPE_PHASE_GENERATION;
  spec.rules[1].positions_of = SCOPE_POSITIONS_ANSWER;
  spec.rules[1].pos_to = 9;
  Fixture f(spec);
  f.begin(0, 4);
  f.decode(0, {0.5f, 0.5f, 0.5f, 0.5f});
  f.decode(4, {0.5f, 2, 0.5f, 0.5f});
  scope_memory_seq_rm(f.hook, 0, 2, 6);
  scope_memory_seq_add(f.hook, 0, 6, -1, -4);
  CHECK_TEXT(f.spans(), "0-4:1");
  CHECK_TEXT(f.events(), "F5");     // tokens follow: it stands
  f.decode(4, {0.5f, 0.5f, 0.5f});  // answer tokens 5, 6, 7
  const scope_event e = f.summary(1);
  CHECK_EQ(e.n_tokens, 8u);  // 3 to 7 before the shift, three after
  const scope_event again = [&] {
    f.begin(0, 1);
    return f.summary(0);
  }();
  CHECK_EQ(again.n_tokens, 7u);  // the next request sees only what is left in the KV
}

TEST(sequences, a_shift_during_the_prompt_moves_nothing_else) {
  Spec spec = watching();
  spec.rules[1].phase = SCOPE_PHASE_GENERATION;
  Fixture f(spec);
  f.decode(0, {0, 0, 0, 0});
  f.begin(0, 6);
  scope_memory_seq_rm(f.hook, 0, 0, 2);
  scope_memory_seq_add(f.hook, 0, 2, -1, -2);
  f.decode(2, {0.5f, 0.5f, 0.5f, 0.5f, 0.5f});
  CHECK_EQ(f.summary(1).n_tokens, 2u);  // positions 5 and 6
}

TEST(sequences, copies_carry_measurements) {
  Fixture f(watching(0, 2));
  f.begin();
  f.decode(0, {0.25f, 0.5f, 2});
  scope_memory_seq_cp(f.hook, 0, 3, -1, -1);
  CHECK_TEXT(f.spans(3), "0-3:1");
  CHECK_NEAR(double{f.activation(1, 3)}, 0.5, 1e-6);
  f.begin(3);
  f.decode(3, {2}, 3);
  CHECK_EQ(f.status(3).n_firing, 1u);
  CHECK_EQ(f.status(0).n_firing, 0u);
  CHECK_EQ(f.summary(0, 3).n_tokens, 4u);
  scope_memory_seq_cp(f.hook, 3, 4, 1, 3);
  CHECK_TEXT(f.spans(4), "1-3:1");
  scope_memory_seq_cp(f.hook, 3, 3, 0, -1);
  scope_memory_seq_cp(f.hook, 77, 3, 0, -1);
  scope_memory_seq_cp(f.hook, 3, -1, 0, -1);
  scope_memory_seq_cp(f.hook, 3, 1 << 30, 0, -1);
  CHECK_TEXT(f.spans(3), "0-4:1");
}

TEST(sequences, a_column_of_two_sequences_is_in_both) {
  Fixture f;
  f.begin(1);
  f.hook->commit();
  f.hook->ubatch.columns = {{5, 0, 1, true}, {6, 1, 1, true}};
  f.hook->ubatch.shared = {{0, 2}, {1, 2}};
  f.hook->begin(false);
  Row h(32, 0.5f);
  CHECK_EQ(scope_hook_residual(f.hook, layer, h.data(), 2), 1);
  CHECK_TEXT(f.spans(1), "0-2:1");
  CHECK_TEXT(f.spans(2), "0-2:1");
  CHECK_NEAR(double{f.activation(1, 2)}, 0.5, 1e-6);
}

TEST(sequences, keep_and_clear) {
  Fixture f;
  for (int32_t seq = 0; seq < 3; seq++) f.decode(0, {0, 0}, seq);
  scope_memory_seq_keep(f.hook, 1);
  CHECK_TEXT(f.spans(0), "");
  CHECK_TEXT(f.spans(1), "0-2:0");
  CHECK_TEXT(f.spans(2), "");
  f.decode(0, {0}, 2);
  scope_memory_seq_rm(f.hook, -1, 0, 1);
  CHECK_TEXT(f.spans(1), "1-2:0");
  CHECK_TEXT(f.spans(2), "");
  scope_memory_clear(f.hook);
  CHECK_TEXT(f.spans(1), "");
}

TEST(sequences, restored_positions_are_unknown) {
  Fixture f;
  f.begin();
  f.decode(0, {0, 2, 0});
  scope_memory_restored(f.hook, 0, 2);
  CHECK_TEXT(f.spans(), "0-2:?");
  CHECK_EQ(f.activation(1), -99.0f);
  f.decode(2, {0});
  CHECK_TEXT(f.spans(), "0-2:? 2-3:1");
  CHECK_EQ(f.summary(0).n_tokens, 1u);
  f.decode(0, {0}, 5);
  scope_memory_restored(f.hook, -1, 4);
  CHECK_TEXT(f.spans(0), "0-4:?");
  CHECK_TEXT(f.spans(5), "0-4:?");
  scope_memory_restored(f.hook, 5, 0);
  CHECK_TEXT(f.spans(5), "");
}

TEST(sequences, division_merges_positions) {
  Fixture f;
  f.decode(0, {0, 0, 0, 0, 0, 0});
  f.hook->commit();
  f.hook->sequences.divide(0, 2, -1, 2);
  CHECK_TEXT(f.spans(), "0-3:0");
  scope_memory_seq_rm(f.hook, 0, 1, 2);
  CHECK_TEXT(f.spans(), "0-1:0 2-3:0");
}

TEST(sequences, requests_are_opened_and_closed_once) {
  Fixture f;
  scope_request_state state;
  CHECK_EQ(scope_request_end(f.hook, 0), SCOPE_E_STATE);
  CHECK_EQ(scope_request_status(f.hook, 0, &state), SCOPE_E_STATE);
  CHECK_EQ(scope_request_begin(f.hook, -1, 1, 1), SCOPE_E_INVALID);
  CHECK_EQ(scope_request_begin(f.hook, 1 << 20, 1, 1), SCOPE_E_INVALID);
  CHECK_EQ(scope_request_begin(f.hook, 0, 1, -1), SCOPE_E_INVALID);
  CHECK_EQ(scope_request_begin(f.hook, 0, 1, 1), SCOPE_OK);
  CHECK_EQ(scope_request_begin(f.hook, 0, 2, 1), SCOPE_E_STATE);
  CHECK_EQ(scope_request_end(f.hook, 0), SCOPE_OK);
  CHECK_EQ(scope_request_end(f.hook, 0), SCOPE_E_STATE);
}

TEST(sequences, the_dose_limit_is_reported_once_a_request) {
  Spec spec = watching();
  spec.on_excess = SCOPE_EXCESS_WARN;
  spec.dose_max = 0.001f;
  Fixture f(spec);
  f.begin();
  f.decode(0, {0.5f});
  f.decode(1, {0.5f, 0.5f});
  CHECK_TEXT(f.events(), "D0");
  CHECK_EQ(scope_request_end(f.hook, 0), 0);
  f.drain();
  scope_memory_clear(f.hook);
  f.begin();
  f.decode(0, {0.0f, 0.5f});
  scope_memory_seq_rm(f.hook, 0, 1, -1);  // taken back: the next one is the first again
  f.decode(1, {0.5f});
  f.decode(2, {0.5f});
  CHECK_TEXT(f.events(), "D1");
}

TEST(sequences, an_audited_alert_never_aborts) {
  Spec spec = watching(SCOPE_ACTION_ABORT);
  spec.rules[0].mode = SCOPE_MODE_AUDIT;
  Fixture f(spec);
  f.begin();
  f.decode(0, {2});
  CHECK_EQ(f.status().abort, 0u);
  CHECK_EQ(f.status().n_firing, 1u);
}

TEST(sequences, thousands_of_programs_are_forgotten_but_not_those_in_use) {
  Fixture f;
  const Bytes blob = watching().blob();
  f.begin();
  f.decode(0, {0});
  for (int i = 0; i < 3000; i++) {
    f.install(blob);
    if (i > 0) scope_memory_seq_rm(f.hook, 0, 1, -1);
    f.decode(1, {0});
  }
  CHECK_TEXT(f.spans(), "0-1:1 1-2:3001");
}

TEST(sequences, a_full_ring_counts_what_it_drops) {
  HookUnderTest hook(16, 4, 16);
  hook.install(watching().blob());
  for (int i = 0; i < 20; i++) {
    scope_request_begin(hook.hook, 0, 1, 1);
    hook.run(0, 0, layer, {0});
    scope_request_end(hook.hook, 0);
  }
  CHECK_EQ(hook.drain().size(), 16u);
  CHECK_EQ(scope_hook_dropped(hook.hook), 60u - 16u);
}

TEST(sequences, the_log_matches_a_simple_model) {
  struct Known {
    float dose;
    uint32_t n_rules;
  };
  for (uint64_t seed = 0; seed < 200; seed++) {
    Random random(seed);
    scope::SequenceLog log;
    std::map<int32_t, Known> model;
    for (int step = 0; step < 300; step++) {
      const auto p0 = static_cast<int32_t>(random.below(40));
      const auto p1 = p0 + static_cast<int32_t>(random.below(20));
      const size_t first = log.index_at(p0), end = log.index_at(p1);
      switch (random.below(8)) {
        case 0:
          log.erase(first, end);
          model.erase(model.lower_bound(p0), model.lower_bound(p1));
          break;
        case 1: {  // only shifts without collisions: the others have no meaning for a KV either
          log.erase(0, first);
          model.erase(model.begin(), model.lower_bound(p0));
          const int32_t delta = static_cast<int32_t>(random.below(30)) - 20;
          log.shift(0, log.size(), delta);
          std::map<int32_t, Known> moved;
          for (const auto & [p, k] : model)
            if (p + delta >= 0) moved[p + delta] = k;
          model = moved;
          break;
        }
        default: {
          const int32_t position = random.chance(0.8) && !model.empty() ? model.rbegin()->first + 1 : p0;
          const Known k{random.uniform(0, 1), random.below(4)};
          scope::Entry e;
          e.position = position;
          e.n_rules = static_cast<uint16_t>(k.n_rules);
          e.n_triggers = static_cast<uint16_t>(k.n_rules);
          std::vector<scope::RuleMeasure> rules(k.n_rules);
          for (auto & r : rules) r.dose = k.dose;
          const std::vector<scope::TriggerState> triggers(k.n_rules);
          log.put(e, rules.data(), triggers.data());
          model[position] = k;
        }
      }
      CHECK_EQ(log.size(), model.size());
      size_t i = 0;
      for (const auto & [p, k] : model) {
        const scope::Entry & e = log.entries()[i++];
        CHECK_EQ(e.position, p);
        CHECK_EQ(uint32_t{e.n_rules}, k.n_rules);
        for (uint32_t r = 0; r < k.n_rules; r++) CHECK(log.rules(e)[r].dose == k.dose);
      }
    }
  }
}
