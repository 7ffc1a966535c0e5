#include "random_spec.hpp"

#include <algorithm>

using namespace test;

Spec test::random_spec(Random & random, uint32_t n_embd) {
  Spec s;
  s.n_embd = n_embd;
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
