#include "spec.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace test {
namespace {

/// CRC-32 bit by bit: slow, and not the hook's own code.
uint32_t slow_crc32(const uint8_t * p, size_t n) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < n; i++) {
    crc ^= p[i];
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
  }
  return ~crc;
}

size_t align(size_t at, size_t to) {
  return (at + to - 1) / to * to;
}

template <typename T>
uint64_t append(Bytes & blob, const T * items, size_t n, size_t alignment) {
  blob.resize(align(blob.size(), alignment));
  const size_t at = blob.size();
  blob.resize(at + n * sizeof(T));
  if (n > 0) std::memcpy(blob.data() + at, items, n * sizeof(T));
  return at;
}

uint64_t append_row(Bytes & blob, const Row & row) {
  return append(blob, row.data(), row.size(), 64);
}

}  // namespace

void seal(Bytes & blob) {
  const uint64_t crc =
      slow_crc32(blob.data() + sizeof(scope_program_header), blob.size() - sizeof(scope_program_header));
  std::memcpy(blob.data() + offsetof(scope_program_header, checksum), &crc, sizeof crc);
}

Bytes Spec::blob() const {
  scope_program_header h{};
  std::memcpy(h.magic, SCOPE_PROGRAM_MAGIC, sizeof h.magic);
  h.version = SCOPE_PROGRAM_VERSION;
  h.header_bytes = sizeof h;
  h.n_embd = n_embd;
  h.n_layer = n_layer;
  h.on_excess = on_excess;
  h.dose_max = dose_max;

  // Rows first, so that the tables can name their offsets; the format leaves the order open.
  Bytes out(sizeof h);
  std::vector<scope_point> point_table;
  std::vector<scope_feature> feature_table;
  std::vector<scope_delta_op> delta_table;
  std::vector<scope_trigger> trigger_table;
  std::vector<uint32_t> trigger_feature_table;
  std::vector<scope_encoder> encoder_table;
  for (const EncoderSpec & e : encoders) {
    scope_encoder t{};
    t.d_sae = static_cast<uint32_t>(e.bias.size());
    t.k = e.k;
    t.off_rows = append_row(out, e.rows);
    t.off_bias = append_row(out, e.bias);
    encoder_table.push_back(t);
  }
  for (const PointSpec & p : points) {
    point_table.push_back({p.layer, static_cast<uint32_t>(feature_table.size()),
                           static_cast<uint32_t>(p.features.size()), static_cast<uint32_t>(delta_table.size()),
                           static_cast<uint32_t>(p.deltas.size()), 0});
    for (const FeatureSpec & f : p.features) {
      feature_table.push_back(f.f);
      feature_table.back().off_row = append_row(out, f.row);
    }
    for (const DeltaSpec & d : p.deltas) {
      delta_table.push_back(d.d);
      delta_table.back().off_row = append_row(out, d.rows);
    }
  }
  for (const TriggerSpec & t : triggers) {
    trigger_table.push_back(t.t);
    trigger_table.back().first_feature = static_cast<uint32_t>(trigger_feature_table.size());
    trigger_table.back().n_features = static_cast<uint32_t>(t.features.size());
    trigger_feature_table.insert(trigger_feature_table.end(), t.features.begin(), t.features.end());
  }
  const auto put = [&](const auto & table, uint32_t & n, uint64_t & offset) {
    n = static_cast<uint32_t>(table.size());
    offset = append(out, table.data(), table.size(), 8);
  };
  put(rules, h.n_rules, h.off_rules);
  put(point_table, h.n_points, h.off_points);
  put(feature_table, h.n_features, h.off_features);
  put(trigger_table, h.n_triggers, h.off_triggers);
  put(trigger_feature_table, h.n_trigger_features, h.off_trigger_features);
  put(delta_table, h.n_deltas, h.off_deltas);
  put(encoder_table, h.n_encoders, h.off_encoders);
  h.total_bytes = out.size();
  std::memcpy(out.data(), &h, sizeof h);
  seal(out);
  return out;
}

uint32_t Spec::add_rule(uint32_t op, uint32_t mode) {
  scope_rule r{};
  r.op = op;
  r.mode = mode;
  r.pos_from = INT32_MIN;
  r.pos_to = INT32_MAX;
  r.condition = r.switch_on = r.alert = SCOPE_NONE;
  rules.push_back(r);
  return static_cast<uint32_t>(rules.size() - 1);
}

PointSpec & Spec::point(int32_t layer) {
  const auto at = std::find_if(points.begin(), points.end(), [&](const PointSpec & p) { return p.layer >= layer; });
  if (at != points.end() && at->layer == layer) return *at;
  return *points.insert(at, PointSpec{layer, {}, {}});
}

uint32_t Spec::add_feature(int32_t layer, Row row, uint32_t gate, float bias) {
  scope_feature f{};
  f.gate = gate;
  f.encoder = SCOPE_NONE;
  f.bias = bias;
  PointSpec & p = point(layer);
  p.features.push_back({f, std::move(row)});
  uint32_t index = 0;
  for (const PointSpec & other : points)
    if (other.layer <= layer) index += static_cast<uint32_t>(other.features.size());
  return index - 1;
}

void Spec::add_delta(int32_t layer, uint32_t rule, uint32_t kind, Row rows, float a, uint32_t feature, float b) {
  scope_delta_op d{};
  d.rule = rule;
  d.kind = kind;
  d.feature = feature;
  d.rank = static_cast<uint32_t>(rows.size() / n_embd);
  d.a = a;
  d.b = b;
  point(layer).deltas.push_back({d, std::move(rows)});
}

uint32_t Spec::add_trigger(std::vector<uint32_t> features, uint32_t point_index, float above) {
  scope_trigger t{};
  t.point = point_index;
  t.above = above;
  t.below = -infinity;
  triggers.push_back({t, std::move(features)});
  return static_cast<uint32_t>(triggers.size() - 1);
}

HookUnderTest::HookUnderTest(uint32_t n_embd, uint32_t n_layer, uint32_t ring_events) : n_embd_(n_embd) {
  if (scope_hook_new(n_embd, n_layer, ring_events, &hook, nullptr, 0) != SCOPE_OK) std::abort();
}

int64_t HookUnderTest::install(const Bytes & blob) {
  return hand_over(blob, scope_hook_install);
}

int64_t HookUnderTest::hold(const Bytes & blob) {
  return hand_over(blob, scope_hook_hold);
}

int64_t HookUnderTest::assign(const std::vector<uint64_t> & serials, uint64_t others) {
  std::vector<int32_t> seq;
  for (size_t i = 0; i < serials.size(); i++) seq.push_back(static_cast<int32_t>(i));
  uint64_t number = 0;
  const int code = scope_hook_assign(hook, others, seq.data(), serials.data(), seq.size(), &number, nullptr, 0);
  return code == SCOPE_OK ? static_cast<int64_t>(number) : code;
}

int64_t HookUnderTest::hand_over(const Bytes & blob, Take * take) {
  char err[256];
  scope_program * program = nullptr;
  const int loaded = scope_program_load(blob.data(), blob.size(), &program, err, sizeof err);
  if (loaded != SCOPE_OK) {
    std::fprintf(stderr, "load: %s\n", err);
    return loaded;
  }
  const int installed = take(hook, program, serial + 1, err, sizeof err);
  if (installed != SCOPE_OK) {
    scope_program_free(program);
    return installed;
  }
  return static_cast<int64_t>(++serial);
}

void HookUnderTest::columns(int32_t seq, int32_t from, int32_t to) {
  std::vector<int32_t> position, sequence;
  for (int32_t p = from; p < to; p++) {
    position.push_back(p);
    sequence.push_back(seq);
  }
  scope_hook_columns(hook, static_cast<uint32_t>(position.size()), position.data(), position.data(), sequence.data(),
                     nullptr);
}

void HookUnderTest::run(int32_t seq, int32_t from, int32_t layer, const std::vector<float> & values) {
  columns(seq, from, from + static_cast<int32_t>(values.size()));
  Row h;
  for (const float v : values) h.insert(h.end(), n_embd_, v);
  scope_hook_residual(hook, layer, h.data(), static_cast<uint32_t>(values.size()));
  scope_hook_end_ubatch(hook);
}

std::vector<scope_event> HookUnderTest::drain() {
  std::vector<scope_event> out(4096);
  out.resize(scope_hook_drain(hook, out.data(), out.size()));
  return out;
}

scope_hook_stats HookUnderTest::stats() const {
  scope_hook_stats out;
  scope_hook_get_stats(hook, &out);
  return out;
}

Row Random::row(size_t n, float size) {
  Row out(n);
  for (float & x : out) x = uniform(-size, size);
  return out;
}

Row Random::basis(uint32_t rank, uint32_t n) {
  std::vector<std::vector<double>> rows;
  while (rows.size() < rank) {
    std::vector<double> v(n);
    for (double & x : v) x = double{uniform(-1, 1)};
    for (const auto & q : rows) {
      double along = 0;
      for (uint32_t i = 0; i < n; i++) along += v[i] * q[i];
      for (uint32_t i = 0; i < n; i++) v[i] -= along * q[i];
    }
    double squares = 0;
    for (const double x : v) squares += x * x;
    if (squares < 1e-6) continue;
    for (double & x : v) x /= std::sqrt(squares);
    rows.push_back(v);
  }
  Row out;
  for (const auto & q : rows)
    for (const double x : q) out.push_back(static_cast<float>(x));
  return out;
}

}  // namespace test
