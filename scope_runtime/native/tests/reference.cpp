#include "reference.hpp"

#include <algorithm>
#include <cmath>

namespace test {
namespace {

constexpr double nan64 = std::numeric_limits<double>::quiet_NaN();

double dot(const float * w, const std::vector<double> & h) {
  double sum = 0;
  for (size_t i = 0; i < h.size(); i++) sum += double{w[i]} * h[i];
  return sum;
}

double length(const std::vector<double> & x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

void raise(double & to, double value) {
  if (std::isnan(to) || value > to) to = value;
}

}  // namespace

Firing replay(const scope_trigger & t, const std::vector<float> & values) {
  Firing f;
  uint32_t consecutive = 0, since_active = 0;
  for (const float v : values) {
    bool active = v > t.above || v < t.below;
    if (f.now && !active && t.hysteresis > 0) {
      const bool held_above = t.above < infinity && v >= t.above - t.hysteresis;
      const bool held_below = t.below > -infinity && v <= t.below + t.hysteresis;
      active = held_above || held_below;
    }
    consecutive = active ? consecutive + 1 : 0;
    since_active = active ? 0 : since_active + 1;
    if (!f.now)
      f.now = active && consecutive >= std::max(t.for_tokens, 1u);
    else
      f.now = since_active <= t.keep_tokens;
    f.ever = f.ever || f.now;
  }
  return f;
}

void Reference::begin(std::vector<RefColumn> columns) {
  columns_ = std::move(columns);
  size_t n_features = 0;
  for (const PointSpec & p : spec_.points) n_features += p.features.size();
  z_.assign(columns_.size(), std::vector<double>(n_features, nan64));
  values_.assign(columns_.size(), std::vector<std::optional<float>>(spec_.triggers.size()));
  now_.assign(columns_.size(), std::vector<RefMeasure>(spec_.rules.size()));
}

bool Reference::in_scope(const scope_rule & r, const RefColumn & c) const {
  const int64_t answer = int64_t{c.position} - (n_prompt_.at(c.sequence) - 1);
  if (r.phase == SCOPE_PHASE_PROMPT && answer >= 0) return false;
  if (r.phase == SCOPE_PHASE_GENERATION && answer < 0) return false;
  const int64_t at = r.positions_of == SCOPE_POSITIONS_ANSWER ? answer : c.position;
  return r.pos_from <= at && at <= r.pos_to;
}

double Reference::activation(const FeatureSpec & f, const std::vector<double> & h) const {
  const double pre = dot(f.row.data(), h) + double{f.f.bias};
  switch (f.f.gate) {
    case SCOPE_GATE_RELU:
      return std::max(pre, 0.0);
    case SCOPE_GATE_THRESHOLD:
      return pre > double{f.f.threshold} ? pre : 0.0;
    case SCOPE_GATE_TOPK: {
      const EncoderSpec & e = spec_.encoders[f.f.encoder];
      std::vector<double> scores;
      for (size_t i = 0; i < e.bias.size(); i++) scores.push_back(dot(&e.rows[i * h.size()], h) + double{e.bias[i]});
      std::vector<size_t> order(scores.size());
      for (size_t i = 0; i < order.size(); i++) order[i] = i;
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
      const auto rank = std::find(order.begin(), order.end(), f.f.latent) - order.begin();
      return rank < static_cast<ptrdiff_t>(e.k) ? pre : 0.0;
    }
    default:
      return pre;
  }
}

Firing Reference::firing(uint32_t trigger, size_t column) const {
  const int32_t sequence = columns_[column].sequence;
  std::vector<float> values;
  if (const auto past = history_.find(sequence); past != history_.end()) values = past->second[trigger];
  for (size_t c = 0; c <= column; c++)
    if (columns_[c].sequence == sequence && values_[c][trigger]) values.push_back(*values_[c][trigger]);
  return replay(spec_.triggers[trigger].t, values);
}

bool Reference::may_act(const scope_rule & r, size_t column) const {
  return (r.condition == SCOPE_NONE || firing(r.condition, column).now) &&
         (r.switch_on == SCOPE_NONE || firing(r.switch_on, column).ever);
}

void Reference::evaluate(uint32_t trigger, size_t c, bool has_row) {
  if (!has_row) return;
  const TriggerSpec & t = spec_.triggers[trigger];
  double value = nan64;
  for (const uint32_t f : t.features) {
    const double z = z_[c][f];
    if (std::isnan(z)) continue;
    if (t.t.watch == SCOPE_WATCH_MAX)
      raise(value, z);
    else
      value = std::isnan(value) ? z : value + z;
  }
  bool is_alert = false, counts = false;
  for (const scope_rule & r : spec_.rules)
    if (r.alert == trigger) {
      is_alert = true;
      counts = counts || (in_scope(r, columns_[c]) && may_act(r, c));
    }
  values_[c][trigger] = static_cast<float>(!is_alert || counts ? value : nan64);
  for (size_t r = 0; r < spec_.rules.size(); r++) {
    if (spec_.rules[r].alert != trigger || !in_scope(spec_.rules[r], columns_[c])) continue;
    now_[c][r].activation = value;
    now_[c][r].measured = true;
    now_[c][r].fired = firing(trigger, c).now;
  }
}

Matrix Reference::residual(int32_t layer, Matrix h, bool outputs_only) {
  uint32_t first_feature = 0, index = 0;
  while (index < spec_.points.size() && spec_.points[index].layer != layer)
    first_feature += static_cast<uint32_t>(spec_.points[index++].features.size());
  if (index == spec_.points.size()) return h;
  const PointSpec & point = spec_.points[index];

  std::vector<std::optional<size_t>> row_of(columns_.size());
  size_t n_rows = 0;
  for (size_t c = 0; c < columns_.size(); c++)
    if (!outputs_only || columns_[c].output) row_of[c] = n_rows++;
  const auto steered = [&](size_t c) { return n_prompt_.count(columns_[c].sequence) != 0; };
  for (size_t c = 0; c < columns_.size(); c++)
    if (steered(c) && row_of[c])
      for (size_t f = 0; f < point.features.size(); f++)
        z_[c][first_feature + f] = activation(point.features[f], h[*row_of[c]]);
  for (uint32_t t = 0; t < spec_.triggers.size(); t++)
    if (spec_.triggers[t].t.point == index)
      for (size_t c = 0; c < columns_.size(); c++)
        if (steered(c)) evaluate(t, c, row_of[c].has_value());
  for (size_t c = 0; c < columns_.size(); c++)
    if (steered(c) && row_of[c]) change(point, c, h[*row_of[c]]);
  return h;
}

void Reference::change(const PointSpec & point, size_t c, std::vector<double> & h) {
  const double h_length = length(h);
  std::map<uint32_t, std::vector<double>> by_rule;
  for (const DeltaSpec & d : point.deltas) {
    const scope_rule & rule = spec_.rules[d.d.rule];
    if (!in_scope(rule, columns_[c])) continue;
    RefMeasure & m = now_[c][d.d.rule];
    m.measured = true;
    raise(m.dose, 0.0);
    std::vector<double> & delta = by_rule.try_emplace(d.d.rule, h.size(), 0.0).first->second;
    std::vector<double> coefficients(d.d.rank, 0.0);
    const double z = d.d.feature != SCOPE_NONE ? z_[c][d.d.feature] : nan64;
    switch (d.d.kind) {
      case SCOPE_DELTA_SCALE:
        coefficients[0] = double{d.d.a} * z;
        break;
      case SCOPE_DELTA_CLAMP:
        coefficients[0] = std::clamp(z, double{d.d.a}, double{d.d.b}) - z;
        break;
      case SCOPE_DELTA_ADD:
        coefficients[0] = 1.0;
        break;
      case SCOPE_DELTA_ADD_RESIDUAL:
        coefficients[0] = double{d.d.a} * h_length;
        break;
      default: {
        double squares = 0;
        for (uint32_t q = 0; q < d.d.rank; q++) {
          coefficients[q] = -dot(&d.rows[q * h.size()], h);
          squares += coefficients[q] * coefficients[q];
        }
        raise(m.activation, std::sqrt(squares));
      }
    }
    raise(m.activation, z);
    for (uint32_t q = 0; q < d.d.rank; q++)
      for (size_t i = 0; i < h.size(); i++) delta[i] += coefficients[q] * double{d.rows[q * h.size() + i]};
  }

  std::vector<double> total(h.size(), 0.0);
  std::vector<std::pair<uint32_t, double>> acting;
  for (const auto & [r, delta] : by_rule) {
    const double size = length(delta);
    if (!may_act(spec_.rules[r], c) || size == 0.0) continue;
    if (spec_.rules[r].mode == SCOPE_MODE_AUDIT) {
      raise(now_[c][r].dose, size / h_length);
      now_[c][r].fired = true;
      continue;
    }
    acting.push_back({r, size / h_length});
    for (size_t i = 0; i < h.size(); i++) total[i] += delta[i];
  }
  double kept = 1.0;
  const double dose = length(total) / h_length;
  const bool excess = spec_.on_excess != SCOPE_EXCESS_NONE && dose > double{spec_.dose_max};
  if (excess && spec_.on_excess == SCOPE_EXCESS_CLAMP) kept = double{spec_.dose_max} / dose;
  if (excess && spec_.on_excess == SCOPE_EXCESS_ABORT) kept = 0.0;
  for (const auto & [r, own] : acting) {
    raise(now_[c][r].dose, own * kept);
    now_[c][r].fired = now_[c][r].fired || kept > 0.0;
    now_[c][r].limited = now_[c][r].limited || (excess && spec_.on_excess != SCOPE_EXCESS_WARN);
  }
  for (size_t i = 0; i < h.size(); i++) h[i] += kept * total[i];
}

void Reference::end() {
  for (size_t c = 0; c < columns_.size(); c++) {
    const int32_t sequence = columns_[c].sequence;
    if (n_prompt_.count(sequence) == 0) continue;
    auto & past = history_.try_emplace(sequence, spec_.triggers.size()).first->second;
    for (size_t t = 0; t < spec_.triggers.size(); t++)
      if (values_[c][t]) past[t].push_back(*values_[c][t]);
    measures[sequence][columns_[c].position] = now_[c];
  }
}

}  // namespace test
