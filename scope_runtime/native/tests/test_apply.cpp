// What the hook does to a residual, against the reference and against single cases worked out by hand.
#include <algorithm>
#include <cstring>

#include "check.hpp"
#include "reference.hpp"
#include "spec.hpp"

using namespace test;

namespace {

/// A random program over all operations, gates, modes, scopes and triggers.
Spec random_spec(Random & random) {
  Spec s;
  s.n_embd = 5 + random.below(30);
  s.n_layer = 4;
  const uint32_t n = s.n_embd;
  if (random.chance(0.5)) {
    s.on_excess = 1 + random.below(3);
    s.dose_max = random.uniform(0.05f, 1.0f);
  }
  for (uint32_t i = 0, count = 1 + random.below(2); i < count; i++) {
    const uint32_t d_sae = 4 + random.below(150);
    s.encoders.push_back({1 + random.below(std::min(d_sae, 12u)), random.row(d_sae * n), random.row(d_sae)});
  }
  std::vector<int32_t> feature_layers;  // by feature
  for (int32_t layer = -1; layer < 4; layer++) {
    if (!random.chance(0.7)) continue;
    s.point(layer);
    for (uint32_t i = 0, count = random.below(4); i < count; i++) {
      const uint32_t gate = random.below(4);
      Row row = random.row(n);
      scope_feature extra{};
      extra.encoder = SCOPE_NONE;
      if (gate == SCOPE_GATE_TOPK) {
        extra.encoder = random.below(static_cast<uint32_t>(s.encoders.size()));
        const EncoderSpec & e = s.encoders[extra.encoder];
        extra.latent = random.below(static_cast<uint32_t>(e.bias.size()));
        row.assign(e.rows.begin() + extra.latent * n, e.rows.begin() + (extra.latent + 1) * n);
        extra.bias = e.bias[extra.latent];
      } else {
        extra.bias = random.uniform(-1, 1);
      }
      s.add_feature(layer, row, gate, extra.bias);
      scope_feature & f = s.point(layer).features.back().f;
      f.encoder = extra.encoder;
      f.latent = extra.latent;
      f.threshold = random.uniform(0, 2);
      feature_layers.push_back(layer);
    }
  }
  const auto point_index = [&](int32_t layer) {
    uint32_t i = 0;
    while (s.points[i].layer != layer) i++;
    return i;
  };
  if (!feature_layers.empty()) {
    for (uint32_t i = 0, count = random.below(5); i < count; i++) {
      std::vector<uint32_t> features;
      int32_t deepest = -1;
      for (uint32_t j = 0, size = 1 + random.below(3); j < size; j++) {
        features.push_back(random.below(static_cast<uint32_t>(feature_layers.size())));
        deepest = std::max(deepest, feature_layers[features.back()]);
      }
      const uint32_t t = s.add_trigger(features, point_index(deepest), random.uniform(-0.5f, 2));
      scope_trigger & trigger = s.triggers[t].t;
      trigger.watch = random.below(2);
      if (random.chance(0.3)) trigger.below = random.uniform(-3, 0);
      if (random.chance(0.2)) trigger.above = infinity;
      trigger.hysteresis = random.uniform(0, 1);
      trigger.for_tokens = random.below(4);
      trigger.keep_tokens = random.below(3);
    }
  }
  const auto n_triggers = static_cast<uint32_t>(s.triggers.size());
  const auto any_trigger_until = [&](uint32_t point, uint32_t before) -> uint32_t {
    if (before == 0 || !random.chance(0.5)) return SCOPE_NONE;
    const uint32_t t = random.below(before);
    return s.triggers[t].t.point <= point ? t : SCOPE_NONE;
  };
  for (uint32_t i = 0, count = 1 + random.below(6); i < count; i++) {
    uint32_t op = random.below(6);
    if (op == SCOPE_OP_ALERT && n_triggers == 0) op = SCOPE_OP_AMPLIFY;
    const uint32_t r = s.add_rule(op, random.chance(0.25) ? SCOPE_MODE_AUDIT : SCOPE_MODE_ENFORCE);
    scope_rule rule = s.rules[r];
    rule.phase = random.below(3);
    if (random.chance(0.3)) {
      rule.positions_of = random.below(2);
      rule.pos_from = static_cast<int32_t>(random.below(6)) - 2;
      rule.pos_to = rule.pos_from + static_cast<int32_t>(random.below(20));
    }
    uint32_t first_point = SCOPE_NONE;
    if (op == SCOPE_OP_ALERT) {
      rule.alert = random.below(n_triggers);
      // Conditions of alerts are earlier triggers, so that the reference can evaluate them in order.
      rule.condition = any_trigger_until(s.triggers[rule.alert].t.point, rule.alert);
      rule.switch_on = any_trigger_until(s.triggers[rule.alert].t.point, rule.alert);
      s.rules[r] = rule;
      continue;
    }
    uint32_t feature = 0;
    for (uint32_t p = 0; p < s.points.size(); p++) {
      const auto here = static_cast<uint32_t>(s.points[p].features.size());
      const bool needs_feature = op == SCOPE_OP_MUTE || op == SCOPE_OP_SCALE || op == SCOPE_OP_CLAMP;
      if (random.chance(0.6) && !(needs_feature && here == 0)) {
        first_point = std::min(first_point, p);
        for (uint32_t k = 0, deltas = 1 + random.below(2); k < deltas; k++) {
          const uint32_t f = here > 0 ? feature + random.below(here) : SCOPE_NONE;
          const int32_t layer = s.points[p].layer;
          switch (op) {
            case SCOPE_OP_AMPLIFY:
              if (random.chance(0.5))
                s.add_delta(layer, r, SCOPE_DELTA_ADD, random.row(n));
              else
                s.add_delta(layer, r, SCOPE_DELTA_ADD_RESIDUAL, random.basis(1, n), random.uniform(-0.5f, 0.5f));
              break;
            case SCOPE_OP_MUTE:
              s.add_delta(layer, r, SCOPE_DELTA_SCALE, random.row(n), -1.0f, f);
              break;
            case SCOPE_OP_SCALE:
              s.add_delta(layer, r, SCOPE_DELTA_SCALE, random.row(n), random.uniform(-1, 2), f);
              break;
            case SCOPE_OP_CLAMP:
              s.add_delta(layer, r, SCOPE_DELTA_CLAMP, random.row(n), random.chance(0.3) ? -infinity : -0.2f, f,
                          random.chance(0.3) ? infinity : random.uniform(0, 1));
              break;
            default:
              s.add_delta(layer, r, SCOPE_DELTA_ABLATE, random.basis(1 + random.below(3), n));
              break;
          }
        }
      }
      feature += here;
    }
    if (first_point != SCOPE_NONE) {
      rule.condition = any_trigger_until(first_point, n_triggers);
      rule.switch_on = any_trigger_until(first_point, n_triggers);
    }
    s.rules[r] = rule;
  }
  return s;
}

/// Three sequences, two of them with a request, their columns mixed in every ubatch.
void compare_with_reference(uint64_t seed) {
  Random random(seed);
  const Spec spec = random_spec(random);
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
