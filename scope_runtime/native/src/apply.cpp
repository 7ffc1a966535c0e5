#include "apply.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace scope {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// Whether one of the rules is in scope at the column whose measures these are.
bool any_in_scope(const std::vector<uint32_t> & rules, const RuleMeasure * measures) {
  return std::any_of(rules.begin(), rules.end(), [&](uint32_t r) { return measures[r].has(RuleMeasure::in_scope); });
}

/// Maximum in which NaN, not measured, is less than anything.
void raise(float & to, float value) {
  if (std::isnan(to) || value > to) to = value;
}

class PointRun {
 public:
  PointRun(Ubatch & u, uint32_t lane, uint32_t point, const Rows & rows, float * h, Scratch & scratch)
      : u_(u),
        lane_(lane),
        program_(*u.lane(lane).program),
        point_(program_.points[point]),
        plan_(program_.point_plans[point]),
        rows_(rows),
        h_(h),
        n_embd_(program_.n_embd()),
        run_(kernels()),
        scratch_(scratch) {
    scratch.total.resize(n_embd_);
    scratch.one_rule.resize(n_embd_);
  }

  // All activations and triggers are taken from the residual as it came in, before anything is added to it.
  void all(Rows & changed) {
    measure();
    answer_topk(program_, scratch_.questions);
    for (const uint32_t trigger : plan_.triggers) fold_trigger(trigger);
    for (uint32_t row = rows_.first; row < rows_.end(); row++) {
      const uint32_t c = rows_.column(u_, row);
      if (u_.lane_of[c] == lane_ && change(c, row)) changed.include(row);
    }
  }

 private:
  float * h_of(uint32_t row) { return h_ + size_t{row - rows_.first} * n_embd_; }

  void measure() {
    scratch_.questions.clear();
    const uint32_t end = point_.first_feature + point_.n_features;
    for (uint32_t row = rows_.first; row < rows_.end(); row++) {
      const uint32_t c = rows_.column(u_, row);
      if (u_.lane_of[c] != lane_) continue;
      const RuleMeasure * rules = u_.rules_at(c);
      for (uint32_t f = point_.first_feature; f < end; f++) {
        const FeaturePlan & plan = program_.feature_plans[f];
        if (plan.always || any_in_scope(plan.rules, rules)) measure(program_.features[f], h_of(row), u_.z_at(c) + f);
      }
    }
  }

  void measure(const scope_feature & f, const float * h, float * z) {
    const float pre = run_.dot(program_.row(f.off_row), h, n_embd_) + f.bias;
    *z = pre;
    switch (f.gate) {
      case SCOPE_GATE_RELU:
        *z = pre > 0.0f ? pre : 0.0f;
        break;
      case SCOPE_GATE_THRESHOLD:
        *z = pre > f.threshold ? pre : 0.0f;
        break;
      case SCOPE_GATE_TOPK:
        scratch_.questions.push_back({f.encoder, f.latent, h, z, 0.0f, 0, 0.0f});
        break;
      default:
        break;
    }
  }

  void fold_trigger(uint32_t t) {
    const scope_trigger & trigger = program_.triggers[t];
    const std::vector<uint32_t> & alerts = program_.alerts_of_trigger[t];
    // Every steered column, not only those with a row: a token that was not measured keeps the state before it.
    for (uint32_t c = 0; c < u_.size(); c++) {
      if (u_.lane_of[c] != lane_) continue;
      TriggerState & state = u_.triggers_at(c)[t];
      state = u_.state_before(c, t);
      if (!has_row(c)) continue;
      const float value = watched(trigger, u_.z_at(c));
      const bool counts = alerts.empty() || std::any_of(alerts.begin(), alerts.end(), [&](uint32_t r) {
                            return u_.rules_at(c)[r].has(RuleMeasure::in_scope) && may_act(program_.rules[r], c);
                          });
      state = state.next(trigger, counts ? value : not_measured);
      for (const uint32_t r : alerts) {
        RuleMeasure & m = u_.rules_at(c)[r];
        if (!m.has(RuleMeasure::in_scope)) continue;
        m.activation = value;
        m.flags |= RuleMeasure::measured | (state.firing() ? RuleMeasure::fired : 0u);
      }
    }
  }

  /// Rows outside rows_ were read by nobody because nothing is in scope there; they still exist and count as tokens.
  bool has_row(uint32_t c) const { return !rows_.of_outputs || u_.columns[c].output; }

  float watched(const scope_trigger & t, const float * z) const {
    float value = not_measured;
    for (uint32_t i = t.first_feature; i < t.first_feature + t.n_features; i++) {
      const float one = z[program_.trigger_features[i]];
      if (std::isnan(one)) continue;
      if (t.watch == SCOPE_WATCH_MAX)
        raise(value, one);
      else
        value = std::isnan(value) ? one : value + one;
    }
    return value;
  }

  bool may_act(const scope_rule & r, uint32_t c) const {
    const TriggerState * states = u_.triggers_at(c);
    return (r.condition == SCOPE_NONE || states[r.condition].firing()) &&
           (r.switch_on == SCOPE_NONE || states[r.switch_on].ever());
  }

  /// Sums the deltas of every rule at one column, keeps to the dose limit, adds once. True if bytes changed.
  bool change(uint32_t c, uint32_t row) {
    float * h = h_of(row);
    RuleMeasure * rules = u_.rules_at(c);
    float h_norm = -1.0f;
    bool any = false;
    scratch_.acting.clear();
    scratch_.doses.clear();
    for (const DeltaGroup & group : plan_.groups) {
      RuleMeasure & m = rules[group.rule];
      if (!m.has(RuleMeasure::in_scope)) continue;
      if (h_norm < 0.0f) h_norm = norm(h, n_embd_);
      const scope_rule & rule = program_.rules[group.rule];
      m.flags |= RuleMeasure::measured;
      raise(m.dose, 0.0f);
      const bool some = coefficients(group, c, h, h_norm, m);
      if (!some || !may_act(rule, c)) continue;

      const bool enforce = rule.mode == SCOPE_MODE_ENFORCE;
      // The first enforced rule is built where the sum will be, not added to zeros: -0 + 0 would change a bit.
      float * delta = enforce && !any ? scratch_.total.data() : scratch_.one_rule.data();
      build(group, delta);
      const float delta_norm = norm(delta, n_embd_);
      if (!(delta_norm > 0.0f) || !std::isfinite(delta_norm)) continue;
      const float dose = h_norm > 0.0f ? delta_norm / h_norm : infinity;
      if (!enforce) {
        raise(m.dose, dose);
        m.flags |= RuleMeasure::fired;
        continue;
      }
      if (any) run_.add(delta, scratch_.total.data(), n_embd_);
      any = true;
      scratch_.acting.push_back(group.rule);
      scratch_.doses.push_back(dose);
    }
    return any && add_total(c, h, h_norm);
  }

  /// How far each of the group's rows is added. False when the rule does nothing here.
  bool coefficients(const DeltaGroup & group, uint32_t c, const float * h, float h_norm, RuleMeasure & m) {
    scratch_.coefficients.clear();
    const float * z = u_.z_at(c);
    bool some = false;
    const auto put = [&](float coefficient) {
      // A residual that is not finite is llama.cpp's own accident; adding more of it would only blur the record.
      if (!std::isfinite(coefficient)) coefficient = 0.0f;
      scratch_.coefficients.push_back(coefficient);
      some = some || coefficient != 0.0f;
    };
    for (uint32_t i = group.first_delta; i < group.first_delta + group.n_deltas; i++) {
      const scope_delta_op & d = program_.deltas[i];
      switch (d.kind) {
        case SCOPE_DELTA_SCALE:
          raise(m.activation, z[d.feature]);
          put(d.a * z[d.feature]);
          break;
        case SCOPE_DELTA_CLAMP:
          raise(m.activation, z[d.feature]);
          put(std::min(std::max(z[d.feature], d.a), d.b) - z[d.feature]);
          break;
        case SCOPE_DELTA_ADD:
          put(1.0f);
          break;
        case SCOPE_DELTA_ADD_RESIDUAL:
          put(d.a * h_norm);
          break;
        case SCOPE_DELTA_ABLATE: {
          float squares = 0.0f;
          for (uint32_t q = 0; q < d.rank; q++) {
            const float along = run_.dot(program_.row(d.off_row) + size_t{q} * n_embd_, h, n_embd_);
            squares += along * along;
            put(-along);
          }
          raise(m.activation, std::sqrt(squares));
          break;
        }
        default:
          break;
      }
    }
    return some;
  }

  void build(const DeltaGroup & group, float * delta) {
    bool begun = false;
    const float * coefficient = scratch_.coefficients.data();
    for (uint32_t i = group.first_delta; i < group.first_delta + group.n_deltas; i++) {
      const scope_delta_op & d = program_.deltas[i];
      for (uint32_t q = 0; q < d.rank; q++, coefficient++) {
        if (*coefficient == 0.0f) continue;
        const float * row = program_.row(d.off_row) + size_t{q} * n_embd_;
        if (!begun && d.kind == SCOPE_DELTA_ADD)
          std::memcpy(delta, row, n_embd_ * sizeof(float));
        else if (!begun)
          run_.scaled(*coefficient, row, delta, n_embd_);
        else if (d.kind == SCOPE_DELTA_ADD)
          run_.add(row, delta, n_embd_);
        else
          run_.axpy(*coefficient, row, delta, n_embd_);
        begun = true;
      }
    }
  }

  bool add_total(uint32_t c, float * h, float h_norm) {
    float * total = scratch_.total.data();
    const float total_norm = norm(total, n_embd_);
    const float dose = h_norm > 0.0f ? total_norm / h_norm : total_norm > 0.0f ? infinity : 0.0f;
    float kept = 1.0f;
    bool limited = false;
    if (program_.on_excess() != SCOPE_EXCESS_NONE && dose > program_.dose_max()) {
      if (u_.excess_at(c).layer == no_layer) u_.excess_at(c) = {point_.layer, dose};
      limited = program_.on_excess() != SCOPE_EXCESS_WARN;
      if (program_.on_excess() == SCOPE_EXCESS_CLAMP) kept = program_.dose_max() * h_norm / total_norm;
      if (program_.on_excess() == SCOPE_EXCESS_ABORT) kept = 0.0f;
    }
    for (size_t i = 0; i < scratch_.acting.size(); i++) {
      RuleMeasure & m = u_.rules_at(c)[scratch_.acting[i]];
      // Against a residual of no length every dose is infinite; cut to nothing it is 0, not infinity times 0.
      raise(m.dose, kept > 0.0f ? scratch_.doses[i] * kept : 0.0f);
      if (limited) m.flags |= RuleMeasure::limited;
      if (kept > 0.0f) m.flags |= RuleMeasure::fired;
    }
    if (!(kept > 0.0f) || !(total_norm > 0.0f)) return false;
    if (kept == 1.0f)
      run_.add(total, h, n_embd_);
    else
      run_.axpy(kept, total, h, n_embd_);
    return true;
  }

  Ubatch & u_;
  const uint32_t lane_;
  const Program & program_;
  const scope_point & point_;
  const PointPlan & plan_;
  const Rows & rows_;
  float * h_;
  const size_t n_embd_;
  const Kernels & run_;
  Scratch & scratch_;
};

}  // namespace

Rows rows_wanted(const Ubatch & u, int32_t layer, const Rows & all) {
  Rows out{all.of_outputs, all.first, 0};
  for (uint32_t l = 0; l < u.n_lanes(); l++) {
    const uint32_t point = u.lane(l).point_at(layer);
    if (point == SCOPE_NONE) continue;
    const PointPlan & plan = u.lane(l).program->point_plans[point];
    for (uint32_t row = all.first; row < all.end(); row++) {
      const uint32_t c = all.column(u, row);
      if (u.lane_of[c] == l && (plan.always || any_in_scope(plan.rules, u.rules_at(c)))) out.include(row);
    }
  }
  return out;
}

Rows apply_layer(Ubatch & u, int32_t layer, const Rows & rows, float * h, Scratch & scratch) {
  Rows changed{rows.of_outputs, rows.first, 0};
  for (uint32_t l = 0; l < u.n_lanes(); l++) {
    const uint32_t point = u.lane(l).point_at(layer);
    if (point == SCOPE_NONE) continue;
    u.lane(l).visited[point] = 1;
    PointRun(u, l, point, rows, h, scratch).all(changed);
  }
  return changed;
}

}  // namespace scope
