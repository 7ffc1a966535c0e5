#include "ubatch.hpp"

namespace scope {

bool Ubatch::rule_in_scope(const scope_rule & r, uint32_t c) const {
  const int64_t position = columns[c].position;
  const int64_t answer = position - answer_start[c];
  if (r.phase == SCOPE_PHASE_GENERATION && answer < 0) return false;
  if (r.phase == SCOPE_PHASE_PROMPT && answer >= 0) return false;
  const int64_t at = r.positions_of == SCOPE_POSITIONS_ANSWER ? answer : position;
  return at >= r.pos_from && at <= r.pos_to;
}

Lane & Ubatch::add_lane() {
  if (n_lanes_ == lanes_.size()) lanes_.emplace_back();
  return lanes_[n_lanes_++];
}

void Ubatch::prepare() {
  const uint32_t n = size();
  size_t n_rules = 0, n_triggers = 0, n_features = 0;
  rules_first_.resize(n);
  triggers_first_.resize(n);
  z_first_.resize(n);
  for (uint32_t c = 0; c < n; c++) {
    rules_first_[c] = n_rules;
    triggers_first_[c] = n_triggers;
    z_first_[c] = n_features;
    if (!steered(c)) continue;
    n_rules += lane_at(c).n_rules();
    n_triggers += lane_at(c).n_triggers();
    n_features += lane_at(c).n_features();
  }
  rules_.assign(n_rules, RuleMeasure{});
  triggers_.assign(n_triggers, TriggerState{});
  z_.assign(n_features, not_measured);
  excess_.assign(n, Excess{});
  last_layer = no_layer;
  for (uint32_t l = 0; l < n_lanes_; l++)
    lanes_[l].visited.assign(lanes_[l].program != nullptr ? lanes_[l].program->points.size : 0, 0);
  outputs.clear();
  for (uint32_t c = 0; c < n; c++) {
    if (columns[c].output) outputs.push_back(c);
    if (!steered(c)) continue;
    const Lane & own = lane_at(c);
    for (uint32_t r = 0; r < own.n_rules(); r++)
      if (rule_in_scope(own.program->rules[r], c)) rules_at(c)[r].flags = RuleMeasure::in_scope;
  }
}

void Ubatch::carry_unvisited() {
  for (uint32_t l = 0; l < n_lanes_; l++) {
    const Lane & lane = lanes_[l];
    for (uint32_t p = 0; p < lane.visited.size(); p++) {
      if (lane.visited[p] != 0) continue;
      for (const uint32_t t : lane.program->point_plans[p].triggers)
        for (uint32_t c = 0; c < size(); c++)
          if (lane_of[c] == l) triggers_at(c)[t] = state_before(c, t);
    }
  }
}

}  // namespace scope
