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

void Ubatch::prepare() {
  const uint32_t n = size();
  rules.assign(size_t{n} * n_rules(), RuleMeasure{});
  triggers.assign(size_t{n} * n_triggers(), TriggerState{});
  z.assign(size_t{n} * n_features(), not_measured);
  excess.assign(n, Excess{});
  last_layer = no_layer;
  visited.assign(program != nullptr ? program->points.size : 0, 0);
  outputs.clear();
  for (uint32_t c = 0; c < n; c++) {
    if (columns[c].output) outputs.push_back(c);
    if (steered[c] == 0) continue;
    for (uint32_t r = 0; r < n_rules(); r++)
      if (rule_in_scope(program->rules[r], c)) rules_at(c)[r].flags = RuleMeasure::in_scope;
  }
}

void Ubatch::carry_unvisited() {
  if (program == nullptr) return;
  for (uint32_t p = 0; p < program->points.size; p++) {
    if (point_visited(p)) continue;
    for (const uint32_t t : program->point_plans[p].triggers)
      for (uint32_t c = 0; c < size(); c++)
        if (steered[c] != 0) triggers_at(c)[t] = state_before(c, t);
  }
}

}  // namespace scope
