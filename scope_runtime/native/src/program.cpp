#include "program.hpp"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>

#include "crc32.hpp"

namespace scope {
namespace {

static_assert(sizeof(scope_program_header) == 168);
static_assert(sizeof(scope_rule) == 40 && sizeof(scope_point) == 24 && sizeof(scope_feature) == 32);
static_assert(sizeof(scope_trigger) == 40 && sizeof(scope_delta_op) == 32 && sizeof(scope_encoder) == 24);

// Far above any policy, and low enough that what the hook allocates per column stays small.
constexpr uint32_t max_rules = 4096, max_triggers = 4096, max_features = 65536, max_deltas = 65536;
constexpr uint32_t max_trigger_features = 1u << 20, max_encoders = 4096;
constexpr uint32_t max_n_embd = 1u << 20, max_n_layer = 1u << 14, max_d_sae = 1u << 28;
constexpr uint32_t max_rank_proved = 64;                 // every pair of rows up to here, only their lengths beyond
constexpr uint32_t max_tokens_counted = (1u << 30) - 1;  // a trigger's counter has 30 bits

[[noreturn]] [[gnu::format(printf, 1, 2)]] void fail(const char * format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw InvalidProgram(text);
}

bool in_range(uint32_t first, uint32_t n, uint32_t size) {
  return first <= size && n <= size - first;
}

template <typename T>
Table<T> table(const std::byte * bytes, uint64_t total, const char * name, uint64_t offset, uint32_t n, uint32_t max) {
  if (n > max) fail("the program has %u %s; at most %u are allowed", n, name, max);
  if (offset % 8 != 0) fail("the table of %s is not aligned", name);
  if (offset < sizeof(scope_program_header) || offset > total || uint64_t{n} * sizeof(T) > total - offset)
    fail("the table of %s lies outside the program", name);
  return {reinterpret_cast<const T *>(bytes + offset), n};
}

bool all_finite(const float * x, uint64_t n) {
  // Multiplying by zero keeps finite numbers at zero and turns the others into NaN, without a branch a number.
  float sum = 0.0f;
  for (uint64_t i = 0; i < n; i++) sum += x[i] * 0.0f;
  return sum == 0.0f;
}

double dot(const float * a, const float * b, uint32_t n) {
  double sum = 0.0;
  for (uint32_t i = 0; i < n; i++) sum += double{a[i]} * double{b[i]};
  return sum;
}

}  // namespace

std::unique_ptr<Program> Program::load(const void * data, size_t n_bytes) {
  if (data == nullptr || n_bytes < sizeof(scope_program_header)) fail("the program is shorter than its header");
  std::unique_ptr<Program> p(new Program);
  std::memcpy(&p->header_, data, sizeof p->header_);
  p->read_header(n_bytes);
  p->bytes_.reset(static_cast<std::byte *>(::operator new(n_bytes, std::align_val_t{64})));
  std::memcpy(p->bytes_.get(), data, n_bytes);
  // The source may be shared memory: from here on only the copy is read, and its header is the one that was checked.
  std::memcpy(p->bytes_.get(), &p->header_, sizeof p->header_);
  const uint32_t checksum =
      crc32(p->bytes_.get() + sizeof(scope_program_header), n_bytes - sizeof(scope_program_header));
  if (p->header_.checksum != checksum) fail("the program's checksum does not match its bytes");
  p->find_tables();
  p->check_points();
  p->check_encoders();
  p->check_features();
  p->check_triggers();
  p->check_rules();
  p->check_deltas();
  p->plan();
  for (const scope_encoder & e : p->encoders)
    p->coarse_encoders.push_back(coarse(p->row(e.off_rows), e.d_sae, p->n_embd()));
  return p;
}

void Program::read_header(size_t n_bytes) {
  const scope_program_header & h = header_;
  if (std::memcmp(h.magic, SCOPE_PROGRAM_MAGIC, sizeof h.magic) != 0) fail("these bytes are not a Scope program");
  if (h.version != SCOPE_PROGRAM_VERSION)
    fail("the program has format version %u; this hook reads version %u", h.version, SCOPE_PROGRAM_VERSION);
  if (h.header_bytes != sizeof h) fail("the program's header has %u bytes instead of %zu", h.header_bytes, sizeof h);
  if (h.total_bytes != n_bytes)
    fail("the program says that it has %llu bytes, but has %zu", static_cast<unsigned long long>(h.total_bytes),
         n_bytes);
  if (h.n_embd == 0 || h.n_embd > max_n_embd) fail("the program's width of %u is not possible", h.n_embd);
  if (h.n_layer == 0 || h.n_layer > max_n_layer) fail("the program's %u layers are not possible", h.n_layer);
  if (h.on_excess > SCOPE_EXCESS_ABORT) fail("unknown on_excess %u", h.on_excess);
  if (!(h.dose_max >= 0.0f)) fail("the dose limit is not a number of at least 0");
  if (h.reserved != 0) fail("a reserved field of the header is not 0");
}

void Program::find_tables() {
  const scope_program_header & h = header_;
  const std::byte * b = bytes_.get();
  const uint64_t total = h.total_bytes;
  rules = table<scope_rule>(b, total, "rules", h.off_rules, h.n_rules, max_rules);
  points = table<scope_point>(b, total, "points", h.off_points, h.n_points, h.n_layer + 1);
  features = table<scope_feature>(b, total, "features", h.off_features, h.n_features, max_features);
  triggers = table<scope_trigger>(b, total, "triggers", h.off_triggers, h.n_triggers, max_triggers);
  trigger_features =
      table<uint32_t>(b, total, "trigger features", h.off_trigger_features, h.n_trigger_features, max_trigger_features);
  deltas = table<scope_delta_op>(b, total, "deltas", h.off_deltas, h.n_deltas, max_deltas);
  encoders = table<scope_encoder>(b, total, "encoders", h.off_encoders, h.n_encoders, max_encoders);
}

void Program::check_rows(const char * what, uint32_t index, uint64_t offset, uint64_t n_rows) const {
  const uint64_t total = header_.total_bytes;
  const uint64_t row_bytes = uint64_t{header_.n_embd} * sizeof(float);
  if (offset % 64 != 0) fail("the row of %s %u is not aligned", what, index);
  if (offset < sizeof(scope_program_header) || offset > total || n_rows > (total - offset) / row_bytes)
    fail("the row of %s %u lies outside the program", what, index);
  if (!all_finite(row(offset), n_rows * header_.n_embd))
    fail("the row of %s %u has a number that is not finite", what, index);
}

void Program::check_points() {
  point_of_layer_.assign(size_t{header_.n_layer} + 1, SCOPE_NONE);
  point_of_feature_.assign(features.size, SCOPE_NONE);
  std::vector<bool> delta_claimed(deltas.size, false);
  for (uint32_t i = 0; i < points.size; i++) {
    const scope_point & p = points[i];
    if (p.layer < SCOPE_LAYER_EMBEDDING || p.layer >= static_cast<int32_t>(header_.n_layer))
      fail("point %u is at layer %d of a model with %u", i, p.layer, header_.n_layer);
    if (i > 0 && p.layer <= points[i - 1].layer) fail("point %u is not sorted by layer", i);
    if (!in_range(p.first_feature, p.n_features, features.size)) fail("the features of point %u do not exist", i);
    if (!in_range(p.first_delta, p.n_deltas, deltas.size)) fail("the deltas of point %u do not exist", i);
    if (p.reserved != 0) fail("a reserved field of point %u is not 0", i);
    point_of_layer_[static_cast<size_t>(p.layer + 1)] = i;
    for (uint32_t f = p.first_feature; f < p.first_feature + p.n_features; f++) {
      if (point_of_feature_[f] != SCOPE_NONE) fail("feature %u belongs to two points", f);
      point_of_feature_[f] = i;
    }
    for (uint32_t d = p.first_delta; d < p.first_delta + p.n_deltas; d++) {
      if (delta_claimed[d]) fail("delta %u belongs to two points", d);
      delta_claimed[d] = true;
    }
  }
  for (uint32_t f = 0; f < features.size; f++)
    if (point_of_feature_[f] == SCOPE_NONE) fail("feature %u belongs to no point", f);
  for (uint32_t d = 0; d < deltas.size; d++)
    if (!delta_claimed[d]) fail("delta %u belongs to no point", d);
}

void Program::check_encoders() {
  for (uint32_t i = 0; i < encoders.size; i++) {
    const scope_encoder & e = encoders[i];
    if (e.d_sae == 0 || e.d_sae > max_d_sae) fail("encoder %u has %u latents", i, e.d_sae);
    if (e.k == 0 || e.k > e.d_sae) fail("encoder %u has top-k %u of %u latents", i, e.k, e.d_sae);
    check_rows("encoder", i, e.off_rows, e.d_sae);
    const uint64_t total = header_.total_bytes;
    if (e.off_bias % 64 != 0 || e.off_bias < sizeof(scope_program_header) || e.off_bias > total ||
        e.d_sae > (total - e.off_bias) / sizeof(float))
      fail("the bias of encoder %u lies outside the program", i);
    if (!all_finite(row(e.off_bias), e.d_sae)) fail("the bias of encoder %u has a number that is not finite", i);
  }
}

void Program::check_features() {
  for (uint32_t i = 0; i < features.size; i++) {
    const scope_feature & f = features[i];
    if (f.gate > SCOPE_GATE_TOPK) fail("feature %u has the unknown gate %u", i, f.gate);
    if (f.gate == SCOPE_GATE_TOPK) {
      if (f.encoder >= encoders.size) fail("feature %u names encoder %u of %u", i, f.encoder, encoders.size);
      if (f.latent >= encoders[f.encoder].d_sae)
        fail("feature %u is latent %u of an encoder that has not so many", i, f.latent);
    } else if (f.encoder != SCOPE_NONE) {
      fail("feature %u has an encoder but not the top-k gate", i);
    }
    if (!std::isfinite(f.threshold) || !std::isfinite(f.bias))
      fail("feature %u has a bias or threshold that is not finite", i);
    if (f.reserved != 0) fail("a reserved field of feature %u is not 0", i);
    check_rows("feature", i, f.off_row, 1);
  }
}

void Program::check_triggers() {
  for (uint32_t i = 0; i < triggers.size; i++) {
    const scope_trigger & t = triggers[i];
    if (t.n_features == 0 || !in_range(t.first_feature, t.n_features, trigger_features.size))
      fail("the features of trigger %u do not exist", i);
    if (t.watch > SCOPE_WATCH_SUM) fail("trigger %u watches %u", i, t.watch);
    if (t.point >= points.size) fail("trigger %u is evaluated at point %u of %u", i, t.point, points.size);
    uint32_t deepest = 0;
    for (uint32_t j = t.first_feature; j < t.first_feature + t.n_features; j++) {
      if (trigger_features[j] >= features.size) fail("trigger %u names a feature that does not exist", i);
      deepest = std::max(deepest, point_of_feature_[trigger_features[j]]);
    }
    if (t.point != deepest) fail("trigger %u is not evaluated at the deepest point of its features", i);
    if (std::isnan(t.above) || std::isnan(t.below)) fail("trigger %u has a bound that is not a number", i);
    if (!std::isfinite(t.hysteresis) || t.hysteresis < 0.0f)
      fail("trigger %u has a hysteresis that is not a number of at least 0", i);
    if (t.for_tokens > max_tokens_counted || t.keep_tokens > max_tokens_counted)
      fail("trigger %u counts more tokens than any context holds", i);
  }
  for (uint32_t j = 0; j < trigger_features.size; j++)
    if (trigger_features[j] >= features.size) fail("trigger feature %u does not exist", j);
}

void Program::check_rules() {
  for (uint32_t i = 0; i < rules.size; i++) {
    const scope_rule & r = rules[i];
    if (r.op > SCOPE_OP_ALERT) fail("rule %u has the unknown operation %u", i, r.op);
    if (r.mode > SCOPE_MODE_AUDIT) fail("rule %u has the unknown mode %u", i, r.mode);
    if (r.phase > SCOPE_PHASE_GENERATION) fail("rule %u has the unknown phase %u", i, r.phase);
    if (r.positions_of > SCOPE_POSITIONS_ANSWER) fail("rule %u counts positions of %u", i, r.positions_of);
    if (r.pos_from > r.pos_to) fail("rule %u has positions that end before they begin", i);
    for (const uint32_t trigger : {r.condition, r.switch_on, r.alert})
      if (trigger != SCOPE_NONE && trigger >= triggers.size) fail("rule %u names a trigger that does not exist", i);
    if ((r.op == SCOPE_OP_ALERT) != (r.alert != SCOPE_NONE))
      fail("rule %u is an alert without a trigger, or the reverse", i);
    if ((r.actions & ~uint32_t{SCOPE_ACTION_ABORT}) != 0 || (r.actions != 0 && r.op != SCOPE_OP_ALERT))
      fail("rule %u has unknown actions", i);
    if (r.op != SCOPE_OP_ALERT) continue;
    for (const uint32_t trigger : {r.condition, r.switch_on})
      if (trigger != SCOPE_NONE && triggers[trigger].point > triggers[r.alert].point)
        fail("the condition of alert rule %u is evaluated after the alert", i);
  }
}

void Program::check_deltas() {
  for (uint32_t p = 0; p < points.size; p++) {
    const uint32_t first = points[p].first_delta, end = first + points[p].n_deltas;
    for (uint32_t i = first; i < end; i++) {
      const scope_delta_op & d = deltas[i];
      if (d.rule >= rules.size) fail("delta %u names rule %u of %u", i, d.rule, rules.size);
      if (i > first && d.rule < deltas[i - 1].rule) fail("delta %u is not sorted by rule", i);
      const scope_rule & r = rules[d.rule];
      for (const uint32_t trigger : {r.condition, r.switch_on})
        if (trigger != SCOPE_NONE && triggers[trigger].point > p)
          fail("the condition of rule %u is evaluated after the rule acts", d.rule);

      bool fits = false;
      switch (r.op) {
        case SCOPE_OP_AMPLIFY:
          fits = d.kind == SCOPE_DELTA_ADD || d.kind == SCOPE_DELTA_ADD_RESIDUAL;
          break;
        case SCOPE_OP_MUTE:
        case SCOPE_OP_SCALE:
          fits = d.kind == SCOPE_DELTA_SCALE;
          break;
        case SCOPE_OP_CLAMP:
          fits = d.kind == SCOPE_DELTA_CLAMP;
          break;
        case SCOPE_OP_ABLATE:
          fits = d.kind == SCOPE_DELTA_ABLATE;
          break;
        default:
          break;
      }
      if (!fits) fail("delta %u is of kind %u, which rule %u does not make", i, d.kind, d.rule);

      const bool scales_feature = d.kind == SCOPE_DELTA_SCALE || d.kind == SCOPE_DELTA_CLAMP;
      if (scales_feature) {
        if (d.feature >= features.size || point_of_feature_[d.feature] != p)
          fail("delta %u uses a feature that is not measured at its point", i);
      } else if (d.feature != SCOPE_NONE) {
        fail("delta %u names a feature that it does not use", i);
      }
      if (d.kind == SCOPE_DELTA_CLAMP) {
        if (!(d.a <= d.b) || d.a == std::numeric_limits<float>::infinity() ||
            d.b == -std::numeric_limits<float>::infinity())
          fail("delta %u clamps to an empty range", i);
      } else if (!std::isfinite(d.a) || !std::isfinite(d.b)) {
        fail("delta %u has a factor that is not finite", i);
      }
      const bool ablates = d.kind == SCOPE_DELTA_ABLATE;
      if (ablates ? d.rank == 0 || d.rank > header_.n_embd : d.rank != 1) fail("delta %u has rank %u", i, d.rank);
      check_rows("delta", i, d.off_row, d.rank);

      // A row that is not of unit length would steer harder than the policy says, and no dose would show why.
      if (ablates || d.kind == SCOPE_DELTA_ADD_RESIDUAL) {
        const uint32_t n = header_.n_embd;
        const float * q = row(d.off_row);
        for (uint32_t j = 0; j < d.rank; j++)
          for (uint32_t k = d.rank > max_rank_proved ? j : 0; k <= j; k++) {
            const double product = dot(q + uint64_t{j} * n, q + uint64_t{k} * n, n);
            if (std::fabs(product - (j == k ? 1.0 : 0.0)) > 1e-3) fail("the rows of delta %u are not orthonormal", i);
          }
      }
    }
  }
}

void Program::plan() {
  plan_triggers();
  point_plans.resize(points.size);
  feature_plans.resize(features.size);
  const auto add = [](std::vector<uint32_t> & to, uint32_t rule) {
    if (std::find(to.begin(), to.end(), rule) == to.end()) to.push_back(rule);
  };
  for (uint32_t p = 0; p < points.size; p++) {
    PointPlan & plan = point_plans[p];
    for (uint32_t i = points[p].first_delta; i < points[p].first_delta + points[p].n_deltas; i++) {
      const scope_delta_op & d = deltas[i];
      if (plan.groups.empty() || plan.groups.back().rule != d.rule) {
        plan.groups.push_back({d.rule, i, 0});
        add(plan.rules, d.rule);
      }
      plan.groups.back().n_deltas++;
      if (d.feature != SCOPE_NONE) add(feature_plans[d.feature].rules, d.rule);
    }
  }
  const auto watch = [&](uint32_t trigger, auto && note) {
    const scope_trigger & t = triggers[trigger];
    for (uint32_t j = t.first_feature; j < t.first_feature + t.n_features; j++)
      note(feature_plans[trigger_features[j]], point_plans[point_of_feature_[trigger_features[j]]]);
  };
  for (uint32_t r = 0; r < rules.size; r++) {
    if (rules[r].alert != SCOPE_NONE)
      watch(rules[r].alert, [&](FeaturePlan & f, PointPlan & p) {
        add(f.rules, r);
        add(p.rules, r);
      });
    for (const uint32_t trigger : {rules[r].condition, rules[r].switch_on})
      if (trigger != SCOPE_NONE) watch(trigger, [](FeaturePlan & f, PointPlan & p) { f.always = p.always = true; });
  }
}

// An alert with a condition needs the condition's state at the same column, so the condition is evaluated first.
void Program::plan_triggers() {
  alerts_of_trigger.resize(triggers.size);
  std::vector<std::vector<uint32_t>> needs(triggers.size);
  for (uint32_t r = 0; r < rules.size; r++) {
    if (rules[r].alert == SCOPE_NONE) continue;
    alerts_of_trigger[rules[r].alert].push_back(r);
    for (const uint32_t trigger : {rules[r].condition, rules[r].switch_on})
      if (trigger != SCOPE_NONE) needs[rules[r].alert].push_back(trigger);
  }
  point_plans.resize(points.size);
  std::vector<bool> placed(triggers.size, false);
  for (uint32_t n_placed = 0; n_placed < triggers.size;) {
    const uint32_t before = n_placed;
    for (uint32_t t = 0; t < triggers.size; t++) {
      const auto ready = [&](uint32_t other) { return placed[other]; };
      if (placed[t] || !std::all_of(needs[t].begin(), needs[t].end(), ready)) continue;
      placed[t] = true;
      n_placed++;
      point_plans[triggers[t].point].triggers.push_back(t);
    }
    if (n_placed == before) fail("alerts are each other's condition");
  }
}

}  // namespace scope
