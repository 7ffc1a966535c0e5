// What the hook does to a residual, against the reference and against single cases worked out by hand.
#include <algorithm>
#include <cstring>

#include "check.hpp"
#include "random_spec.hpp"
#include "reference.hpp"
#include "spec.hpp"

using namespace test;

namespace {

/// Three sequences, two of them with a request, their columns mixed in every ubatch.
void compare_with_reference(uint64_t seed) {
  Random random(seed);
  const Spec spec = random_spec(random, 5 + random.below(30));
  HookUnderTest hook(spec.n_embd, spec.n_layer);
  if (hook.install(spec.blob()) < 0) {
    check::failed(__FILE__, __LINE__, "a random program does not load");
    return;
  }
  Reference reference(spec);
  const bool last_outputs_only = random.chance(0.5);
  for (const int32_t seq : {0, 2}) {
    const auto n_prompt = static_cast<int32_t>(1 + random.below(12));
    reference.request(seq, n_prompt);
    CHECK_EQ(scope_request_begin(hook.hook, seq, 7, n_prompt), SCOPE_OK);
  }
  int32_t next[3] = {0, 0, 0};
  for (int ubatch = 0; ubatch < 8; ubatch++) {
    std::vector<RefColumn> columns;
    std::vector<int32_t> position, sequence;
    std::vector<int8_t> output;
    for (uint32_t i = 0, n = 1 + random.below(7); i < n; i++) {
      const auto seq = static_cast<int32_t>(random.below(3));
      columns.push_back({next[seq]++, seq, random.chance(0.5)});
      position.push_back(columns.back().position);
      sequence.push_back(seq);
      output.push_back(columns.back().output ? 1 : 0);
    }
    const auto n = static_cast<uint32_t>(columns.size());
    CHECK_EQ(scope_hook_columns(hook.hook, n, position.data(), position.data(), sequence.data(), output.data()), 0);
    reference.begin(columns);
    for (int32_t layer = -1; layer < 4; layer++) {
      const bool outputs_only = last_outputs_only && layer == 3;
      const uint32_t n_rows = outputs_only ? static_cast<uint32_t>(std::count(output.begin(), output.end(), 1)) : n;
      const Row before = random.row(n_rows * spec.n_embd, 2.0f);
      Row h = before;
      Matrix want(n_rows, std::vector<double>(spec.n_embd));
      for (size_t i = 0; i < h.size(); i++) want[i / spec.n_embd][i % spec.n_embd] = double{h[i]};
      want = reference.residual(layer, std::move(want), outputs_only);
      const int changed = scope_hook_residual(hook.hook, layer, h.data(), n_rows);
      CHECK(changed >= 0);
      CHECK_EQ(changed != 0, !h.empty() && std::memcmp(h.data(), before.data(), h.size() * sizeof(float)) != 0);
      for (size_t i = 0; i < h.size(); i++) CHECK_NEAR(double{h[i]}, want[i / spec.n_embd][i % spec.n_embd], 2e-5);
    }
    scope_hook_end_ubatch(hook.hook);
    reference.end();
  }

  const size_t n_rules = spec.rules.size();
  for (const auto & [seq, tokens] : reference.measures) {
    for (const auto & [position, want] : tokens) {
      Row activation(n_rules), dose(n_rules);
      std::vector<uint8_t> fired(n_rules);
      CHECK_EQ(scope_sequence_measured(hook.hook, seq, position, activation.data(), dose.data(), fired.data(), n_rules),
               n_rules);
      for (size_t r = 0; r < n_rules; r++) {
        CHECK_NEAR(double{activation[r]}, want[r].activation, 2e-5);
        CHECK_NEAR(double{dose[r]}, want[r].dose, 2e-5);
        CHECK_EQ(fired[r] != 0, want[r].fired);
      }
    }
    hook.drain();
    CHECK_EQ(scope_request_end(hook.hook, seq), SCOPE_OK);
    size_t n_summaries = 0;
    for (const scope_event & e : hook.drain()) {
      if (e.kind == SCOPE_EVENT_REQUEST_END) CHECK_EQ(e.n_tokens, tokens.size());
      if (e.kind != SCOPE_EVENT_SUMMARY) continue;
      n_summaries++;
      uint32_t n_tokens = 0, n_fired = 0, n_limited = 0, n_measured = 0;
      double activation_sum = 0, dose_sum = 0;
      int32_t first = -1, last = -1;
      for (const auto & [position, all] : tokens) {
        const RefMeasure & m = all[e.rule];
        if (!m.measured) continue;
        n_tokens++;
        n_limited += m.limited ? 1 : 0;
        n_measured += std::isnan(m.activation) ? 0 : 1;
        activation_sum += std::isnan(m.activation) ? 0 : m.activation;
        if (!m.fired) continue;
        n_fired++;
        dose_sum += std::isnan(m.dose) ? 0 : m.dose;
        first = first < 0 ? position : first;
        last = position;
      }
      CHECK_EQ(e.n_tokens, n_tokens);
      CHECK_EQ(e.n_fired, n_fired);
      CHECK_EQ(e.n_limited, n_limited);
      CHECK_EQ(e.n_measured, n_measured);
      CHECK_EQ(e.first_position, first);
      CHECK_EQ(e.last_position, last);
      CHECK_NEAR(e.activation_sum, activation_sum, 1e-4);
      CHECK_NEAR(e.dose_sum, dose_sum, 1e-4);
    }
    CHECK_EQ(n_summaries, n_rules);
  }
  CHECK_EQ(hook.stats().n_unmatched, 0u);
}

/// One rule with one ADD of `value` in every element at layer 0.
Spec adding(float value) {
  Spec s;
  s.add_delta(0, s.add_rule(SCOPE_OP_AMPLIFY), SCOPE_DELTA_ADD, Row(s.n_embd, value));
  return s;
}

}  // namespace

TEST(apply, random_programs_match_the_reference) {
  for (uint64_t seed = 0; seed < 300; seed++) compare_with_reference(seed);
}

TEST(apply, add_is_bit_identical_to_a_control_vector) {
  Random random(6);
  Spec s;
  s.n_embd = 67;
  const Row v = random.row(s.n_embd, 3.0f);
  s.add_delta(2, s.add_rule(SCOPE_OP_AMPLIFY), SCOPE_DELTA_ADD, v);
  HookUnderTest hook(s.n_embd, s.n_layer);
  hook.install(s.blob());
  scope_request_begin(hook.hook, 0, 1, 1);
  hook.columns(0, 0, 5);
  Row h = random.row(5 * s.n_embd, 100.0f);
  h[0] = -0.0f;
  Row want = h;
  for (size_t i = 0; i < h.size(); i++) want[i] = h[i] + v[i % s.n_embd];
  CHECK_EQ(scope_hook_residual(hook.hook, 2, h.data(), 5), 1);
  CHECK(std::memcmp(h.data(), want.data(), h.size() * sizeof(float)) == 0);
}

TEST(apply, audit_changes_no_byte) {
  Spec s = adding(1.0f);
  s.rules[0].mode = SCOPE_MODE_AUDIT;
  HookUnderTest hook(s.n_embd, s.n_layer);
  hook.install(s.blob());
  scope_request_begin(hook.hook, 0, 1, 1);
  hook.columns(0, 0, 1);
  Row h(s.n_embd, 2.0f);
  CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 1), 0);
  CHECK(h == Row(s.n_embd, 2.0f));
  float dose = 0;
  uint8_t fired = 0;
  CHECK_EQ(scope_sequence_measured(hook.hook, 0, 0, nullptr, &dose, &fired, 1), 1u);
  CHECK_NEAR(double{dose}, 0.5, 1e-6);
  CHECK_EQ(fired, 1);
}

TEST(apply, generation_begins_at_the_last_prompt_token) {
  Spec s = adding(1.0f);
  s.rules[0].phase = SCOPE_PHASE_GENERATION;
  HookUnderTest hook(s.n_embd, s.n_layer);
  hook.install(s.blob());
  scope_request_begin(hook.hook, 0, 1, 3);
  hook.columns(0, 0, 5);
  Row h(5 * s.n_embd, 0.5f);
  CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 5), 1);
  for (size_t c = 0; c < 5; c++) CHECK(h[c * s.n_embd] == (c < 2 ? 0.5f : 1.5f));
}

TEST(apply, the_dose_limit_on_a_residual_of_no_length) {
  const struct {
    uint32_t on_excess;
    float after;
    uint32_t abort;
  } cases[] = {{SCOPE_EXCESS_NONE, 1.0f, 0},
               {SCOPE_EXCESS_CLAMP, 0.0f, 0},
               {SCOPE_EXCESS_WARN, 1.0f, 0},
               {SCOPE_EXCESS_ABORT, 0.0f, 1}};
  for (const auto & c : cases) {
    Spec s = adding(1.0f);
    s.on_excess = c.on_excess;
    s.dose_max = 0.5f;
    HookUnderTest hook(s.n_embd, s.n_layer);
    hook.install(s.blob());
    scope_request_begin(hook.hook, 0, 1, 1);
    hook.run(0, 0, 0, {0.0f});
    hook.columns(0, 1, 2);
    Row h(s.n_embd, 0.0f);
    scope_hook_residual(hook.hook, 0, h.data(), 1);
    CHECK(h[0] == c.after);
    scope_request_state state;
    scope_request_status(hook.hook, 0, &state);
    CHECK_EQ(state.abort, c.abort);
    if (c.abort != 0) {
      CHECK_EQ(state.abort_rule, SCOPE_NONE);
      CHECK_EQ(state.abort_position, 0);
    }
    scope_request_end(hook.hook, 0);
    uint32_t n_excess = 0;
    for (const scope_event & e : hook.drain()) n_excess += e.kind == SCOPE_EVENT_DOSE_EXCESS ? 1 : 0;
    CHECK_EQ(n_excess, c.on_excess == SCOPE_EXCESS_NONE ? 0u : 1u);
  }
}

TEST(apply, equal_scores_go_to_the_lower_latent) {
  Spec s;
  const uint32_t n = s.n_embd;
  s.encoders.push_back({2, Row(4 * n, 1.0f), Row(4, 0.0f)});
  const uint32_t r = s.add_rule(SCOPE_OP_MUTE);
  for (const uint32_t latent : {1u, 2u}) {
    const uint32_t f = s.add_feature(0, Row(n, 1.0f), SCOPE_GATE_TOPK);
    s.point(0).features.back().f.encoder = 0;
    s.point(0).features.back().f.latent = latent;
    Row d(n, 0.0f);
    d[latent] = 1.0f;
    s.add_delta(0, r, SCOPE_DELTA_SCALE, d, -1.0f, f);
  }
  HookUnderTest hook(n, s.n_layer);
  hook.install(s.blob());
  scope_request_begin(hook.hook, 0, 1, 1);
  hook.columns(0, 0, 1);
  Row h(n, 1.0f);
  CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 1), 1);
  CHECK(h[1] == 1.0f - static_cast<float>(n));  // latents 0 and 1 are the two best
  CHECK(h[2] == 1.0f);
}

TEST(apply, residuals_that_are_not_finite_are_left_alone) {
  Spec s;
  const uint32_t f = s.add_feature(0, Row(s.n_embd, 1.0f));
  s.add_delta(0, s.add_rule(SCOPE_OP_MUTE), SCOPE_DELTA_SCALE, Row(s.n_embd, 1.0f), -1.0f, f);
  HookUnderTest hook(s.n_embd, s.n_layer);
  hook.install(s.blob());
  scope_request_begin(hook.hook, 0, 1, 1);
  for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    hook.columns(0, 0, 1);
    Row h(s.n_embd, 1.0f);
    h[3] = bad;
    CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 1), 0);
    CHECK(h[0] == 1.0f);
  }
}

TEST(apply, rows_that_fit_nothing_are_an_error) {
  const Spec s = adding(1.0f);
  HookUnderTest hook(s.n_embd, s.n_layer);
  hook.install(s.blob());
  Row h(8 * s.n_embd, 1.0f);
  CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 4), SCOPE_E_STATE);
  scope_request_begin(hook.hook, 0, 1, 1);
  hook.columns(0, 0, 4);
  CHECK_EQ(scope_hook_residual(hook.hook, 4, h.data(), 4), SCOPE_E_INVALID);
  CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 3), SCOPE_E_MISMATCH);
  CHECK_EQ(hook.stats().n_unmatched, 1u);
  CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 4), 1);
  CHECK_EQ(scope_hook_residual(hook.hook, 0, h.data(), 4), SCOPE_E_MISMATCH);  // twice
  scope_hook_end_ubatch(hook.hook);
  CHECK_EQ(hook.stats().n_unmatched, 2u);
  // A point that never comes by was not steered, and that must not go unseen.
  hook.columns(0, 4, 5);
  scope_hook_end_ubatch(hook.hook);
  CHECK_EQ(hook.stats().n_unmatched, 3u);
}

TEST(apply, refuses_impossible_columns) {
  HookUnderTest hook(16, 4);
  const int32_t ok[] = {0, 1}, negative[] = {0, -1}, huge[] = {0, 1 << 20};
  CHECK(scope_hook_columns(hook.hook, 0, ok, ok, ok, nullptr) < 0);
  CHECK(scope_hook_columns(hook.hook, 2, nullptr, ok, ok, nullptr) < 0);
  CHECK(scope_hook_columns(hook.hook, 2, ok, negative, ok, nullptr) < 0);
  CHECK(scope_hook_columns(hook.hook, 2, ok, ok, negative, nullptr) < 0);
  CHECK(scope_hook_columns(hook.hook, 2, ok, ok, huge, nullptr) < 0);
  CHECK_EQ(scope_hook_columns(hook.hook, 2, ok, ok, ok, nullptr), 0);
}
