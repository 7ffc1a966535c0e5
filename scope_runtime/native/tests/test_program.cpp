// Loading never trusts the blob: every field spoilt in turn, then random damage with a right checksum.
#include <cstddef>
#include <cstring>

#include "check.hpp"
#include "crc32.hpp"
#include "spec.hpp"

using namespace test;

namespace {

/// A program with one of everything.
Spec everything() {
  Random random(1);
  Spec s;
  const uint32_t n = s.n_embd;
  s.on_excess = SCOPE_EXCESS_CLAMP;
  s.dose_max = 0.5f;
  s.encoders.push_back({2, random.row(8 * n), random.row(8)});
  const uint32_t relu = s.add_feature(-1, random.row(n), SCOPE_GATE_RELU);
  const uint32_t threshold = s.add_feature(1, random.row(n), SCOPE_GATE_THRESHOLD);
  s.points.back().features.back().f.threshold = 0.5f;
  const uint32_t topk =
      s.add_feature(1, Row(s.encoders[0].rows.begin() + 3 * n, s.encoders[0].rows.begin() + 4 * n), SCOPE_GATE_TOPK);
  s.points.back().features.back().f.encoder = 0;
  s.points.back().features.back().f.latent = 3;
  const uint32_t condition = s.add_trigger({relu}, 0, 0.1f);
  const uint32_t alert_trigger = s.add_trigger({threshold, topk}, 1, 0.2f);
  const uint32_t add = s.add_rule(SCOPE_OP_AMPLIFY);
  const uint32_t mute = s.add_rule(SCOPE_OP_MUTE);
  const uint32_t clamp = s.add_rule(SCOPE_OP_CLAMP, SCOPE_MODE_AUDIT);
  const uint32_t ablate = s.add_rule(SCOPE_OP_ABLATE);
  const uint32_t alert = s.add_rule(SCOPE_OP_ALERT);
  s.rules[add].pos_from = 3;
  s.rules[mute].condition = condition;
  s.rules[ablate].switch_on = alert_trigger;
  s.rules[alert].alert = alert_trigger;
  s.rules[alert].actions = SCOPE_ACTION_ABORT;
  s.add_delta(-1, add, SCOPE_DELTA_ADD, random.row(n));
  s.add_delta(1, add, SCOPE_DELTA_ADD_RESIDUAL, random.basis(1, n), 0.1f);
  s.add_delta(1, mute, SCOPE_DELTA_SCALE, random.row(n), -1.0f, threshold);
  s.add_delta(1, clamp, SCOPE_DELTA_CLAMP, random.row(n), 0.0f, topk, 1.0f);
  s.add_delta(3, ablate, SCOPE_DELTA_ABLATE, random.basis(2, n));
  return s;
}

int load(const Bytes & blob, std::string * sentence = nullptr) {
  char err[256] = "untouched";
  scope_program * program = nullptr;
  const int code = scope_program_load(blob.data(), blob.size(), &program, err, sizeof err);
  CHECK((code == SCOPE_OK) == (program != nullptr));
  CHECK((code == SCOPE_OK) == (err[0] == '\0'));
  scope_program_free(program);
  if (sentence != nullptr) *sentence = err;
  return code;
}

template <typename T>
T * at(Bytes & blob, uint64_t offset) {
  return reinterpret_cast<T *>(blob.data() + offset);
}

scope_program_header header(const Bytes & blob) {
  scope_program_header h;
  std::memcpy(&h, blob.data(), sizeof h);
  return h;
}

/// Sets one field of a table's item to a value and expects refusal.
template <typename T, typename Field, typename Value>
void refuses(const Bytes & good, uint64_t table, uint32_t index, Field T::* field, Value value, const char * what) {
  Bytes bad = good;
  T item;
  std::memcpy(&item, bad.data() + table + index * sizeof(T), sizeof(T));
  item.*field = static_cast<Field>(value);
  std::memcpy(bad.data() + table + index * sizeof(T), &item, sizeof(T));
  seal(bad);
  std::string sentence;
  if (load(bad, &sentence) != SCOPE_E_INVALID) check::failed(__FILE__, __LINE__, std::string("accepted: ") + what);
}

#define REFUSES(table, index, T, field, value) \
  refuses(good, h.table, index, &T::field, value, #T "." #field " = " #value)

const float nan_float = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST(program, loads) {
  CHECK_EQ(load(everything().blob()), SCOPE_OK);
  CHECK_EQ(load(Spec{}.blob()), SCOPE_OK);
}

TEST(program, crc_is_zlibs) {
  CHECK_EQ(scope::crc32("123456789", 9), 0xCBF43926u);
  CHECK_EQ(scope::crc32("", 0), 0u);
}

TEST(program, refuses_every_length) {
  const Bytes good = everything().blob();
  for (size_t n = 0; n < good.size(); n++) {
    Bytes cut(good.begin(), good.begin() + static_cast<ptrdiff_t>(n));
    CHECK(load(cut) != SCOPE_OK);
    if (n < sizeof(scope_program_header)) continue;
    // Also when the header admits the length and the checksum is right.
    const uint64_t total = n;
    std::memcpy(cut.data() + offsetof(scope_program_header, total_bytes), &total, sizeof total);
    seal(cut);
    load(cut);
  }
  Bytes longer = good;
  longer.push_back(0);
  CHECK(load(longer) != SCOPE_OK);
  CHECK_EQ(scope_program_load(nullptr, 1000, nullptr, nullptr, 0), SCOPE_E_INVALID);
}

TEST(program, refuses_a_spoilt_header) {
  const Bytes good = everything().blob();
  const struct {
    uint64_t zero = 0;
  } h;
#define HEADER(field, value) refuses(good, h.zero, 0, &scope_program_header::field, value, #field " = " #value)
  HEADER(version, 2);
  HEADER(header_bytes, 160);
  HEADER(total_bytes, 1);
  HEADER(total_bytes, UINT64_MAX);
  HEADER(n_embd, 0);
  HEADER(n_embd, 0xffffffffu);
  HEADER(n_embd, 1u << 20);
  HEADER(n_layer, 0);
  HEADER(n_layer, 3);
  HEADER(n_layer, 0xffffffffu);
  HEADER(on_excess, 4);
  HEADER(dose_max, -1.0f);
  HEADER(dose_max, nan_float);
  HEADER(reserved, 1);
  for (const uint32_t n : {0xffffffffu, 0x10000000u, 6u}) {
    HEADER(n_rules, n);
    HEADER(n_points, n);
    HEADER(n_features, n);
    HEADER(n_triggers, n);
    HEADER(n_trigger_features, n == 6u ? 2u : n);
    HEADER(n_deltas, n == 6u ? 4u : n);
    HEADER(n_encoders, n);
  }
  for (const uint64_t offset :
       {uint64_t{0}, uint64_t{8}, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7, uint64_t{1 << 20}}) {
    HEADER(off_rules, offset);
    HEADER(off_points, offset);
    HEADER(off_features, offset);
    HEADER(off_triggers, offset);
    HEADER(off_trigger_features, offset);
    HEADER(off_deltas, offset);
    HEADER(off_encoders, offset);
  }
#undef HEADER
  Bytes bad = good;
  bad[0] = 'X';
  CHECK_EQ(load(bad), SCOPE_E_INVALID);
  bad = good;
  bad[offsetof(scope_program_header, checksum)] ^= 1;
  CHECK_EQ(load(bad), SCOPE_E_INVALID);
  bad = good;
  bad.back() ^= 1;
  CHECK_EQ(load(bad), SCOPE_E_INVALID);
}

TEST(program, refuses_spoilt_rules) {
  const Bytes good = everything().blob();
  const scope_program_header h = header(good);
  REFUSES(off_rules, 0, scope_rule, op, 6);
  REFUSES(off_rules, 0, scope_rule, op, SCOPE_OP_MUTE);
  REFUSES(off_rules, 0, scope_rule, op, SCOPE_OP_ALERT);
  REFUSES(off_rules, 0, scope_rule, mode, 2);
  REFUSES(off_rules, 0, scope_rule, phase, 3);
  REFUSES(off_rules, 0, scope_rule, positions_of, 2);
  REFUSES(off_rules, 0, scope_rule, pos_to, 2);
  REFUSES(off_rules, 0, scope_rule, condition, 2);
  REFUSES(off_rules, 0, scope_rule, condition, 1);  // evaluated after the rule acts at the embedding
  REFUSES(off_rules, 0, scope_rule, switch_on, 2);
  REFUSES(off_rules, 0, scope_rule, alert, 0);
  REFUSES(off_rules, 0, scope_rule, actions, 1);
  REFUSES(off_rules, 4, scope_rule, alert, 2);
  REFUSES(off_rules, 4, scope_rule, alert, SCOPE_NONE);
  REFUSES(off_rules, 4, scope_rule, actions, 2);
  REFUSES(off_rules, 4, scope_rule, condition, 1);  // its own alert
}

TEST(program, refuses_spoilt_points) {
  const Bytes good = everything().blob();
  const scope_program_header h = header(good);
  REFUSES(off_points, 0, scope_point, layer, -2);
  REFUSES(off_points, 2, scope_point, layer, 4);
  REFUSES(off_points, 1, scope_point, layer, -1);
  REFUSES(off_points, 1, scope_point, layer, 3);
  REFUSES(off_points, 0, scope_point, first_feature, 1);
  REFUSES(off_points, 0, scope_point, first_feature, 0xffffffffu);
  REFUSES(off_points, 0, scope_point, n_features, 0);
  REFUSES(off_points, 0, scope_point, n_features, 2);
  REFUSES(off_points, 0, scope_point, n_features, 0xffffffffu);
  REFUSES(off_points, 0, scope_point, first_delta, 5);
  REFUSES(off_points, 0, scope_point, first_delta, 0xffffffffu);
  REFUSES(off_points, 0, scope_point, n_deltas, 0);
  REFUSES(off_points, 0, scope_point, n_deltas, 0xffffffffu);
  REFUSES(off_points, 0, scope_point, reserved, 1);
}

TEST(program, refuses_spoilt_features) {
  const Bytes good = everything().blob();
  const scope_program_header h = header(good);
  REFUSES(off_features, 0, scope_feature, gate, 4);
  REFUSES(off_features, 0, scope_feature, gate, SCOPE_GATE_TOPK);
  REFUSES(off_features, 0, scope_feature, encoder, 0);
  REFUSES(off_features, 2, scope_feature, encoder, 1);
  REFUSES(off_features, 2, scope_feature, latent, 8);
  REFUSES(off_features, 0, scope_feature, threshold, infinity);
  REFUSES(off_features, 0, scope_feature, bias, nan_float);
  REFUSES(off_features, 0, scope_feature, reserved, 1);
  for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 40, UINT64_MAX - 63, h.total_bytes / 64 * 64})
    REFUSES(off_features, 0, scope_feature, off_row, offset);
  Bytes bad = good;
  scope_feature f;
  std::memcpy(&f, good.data() + h.off_features, sizeof f);
  std::memcpy(bad.data() + f.off_row + 4, &nan_float, 4);
  seal(bad);
  CHECK_EQ(load(bad), SCOPE_E_INVALID);
}

TEST(program, refuses_spoilt_triggers) {
  const Bytes good = everything().blob();
  const scope_program_header h = header(good);
  REFUSES(off_triggers, 1, scope_trigger, first_feature, 2);
  REFUSES(off_triggers, 1, scope_trigger, first_feature, 0xffffffffu);
  REFUSES(off_triggers, 1, scope_trigger, n_features, 0);
  REFUSES(off_triggers, 1, scope_trigger, n_features, 3);
  REFUSES(off_triggers, 1, scope_trigger, watch, 2);
  REFUSES(off_triggers, 1, scope_trigger, point, 0);
  REFUSES(off_triggers, 1, scope_trigger, point, 2);
  REFUSES(off_triggers, 1, scope_trigger, point, 3);
  REFUSES(off_triggers, 1, scope_trigger, above, nan_float);
  REFUSES(off_triggers, 1, scope_trigger, below, nan_float);
  REFUSES(off_triggers, 1, scope_trigger, hysteresis, -1.0f);
  REFUSES(off_triggers, 1, scope_trigger, hysteresis, infinity);
  REFUSES(off_triggers, 1, scope_trigger, for_tokens, 1u << 30);
  REFUSES(off_triggers, 1, scope_trigger, keep_tokens, 0xffffffffu);
  Bytes bad = good;
  *at<uint32_t>(bad, h.off_trigger_features) = 3;
  seal(bad);
  CHECK_EQ(load(bad), SCOPE_E_INVALID);
}

TEST(program, refuses_spoilt_deltas) {
  const Bytes good = everything().blob();
  const scope_program_header h = header(good);
  REFUSES(off_deltas, 0, scope_delta_op, rule, 5);
  REFUSES(off_deltas, 0, scope_delta_op, rule, 1);
  REFUSES(off_deltas, 3, scope_delta_op, rule, 0);  // not sorted
  REFUSES(off_deltas, 0, scope_delta_op, kind, 5);
  REFUSES(off_deltas, 0, scope_delta_op, kind, SCOPE_DELTA_ABLATE);
  REFUSES(off_deltas, 0, scope_delta_op, feature, 0);
  REFUSES(off_deltas, 2, scope_delta_op, feature, 0);  // measured at another point
  REFUSES(off_deltas, 2, scope_delta_op, feature, 3);
  REFUSES(off_deltas, 2, scope_delta_op, feature, SCOPE_NONE);
  REFUSES(off_deltas, 0, scope_delta_op, rank, 0);
  REFUSES(off_deltas, 0, scope_delta_op, rank, 2);
  REFUSES(off_deltas, 4, scope_delta_op, rank, 0);
  REFUSES(off_deltas, 4, scope_delta_op, rank, 17);
  REFUSES(off_deltas, 4, scope_delta_op, rank, 0xffffffffu);
  REFUSES(off_deltas, 2, scope_delta_op, a, infinity);
  REFUSES(off_deltas, 3, scope_delta_op, a, infinity);
  REFUSES(off_deltas, 3, scope_delta_op, a, 2.0f);
  REFUSES(off_deltas, 3, scope_delta_op, b, nan_float);
  REFUSES(off_deltas, 3, scope_delta_op, b, -infinity);
  for (const uint64_t offset : {uint64_t{0}, uint64_t{4}, uint64_t{1} << 62, UINT64_MAX - 63})
    REFUSES(off_deltas, 4, scope_delta_op, off_row, offset);
  // Rows that must have unit length or stand at right angles, and do not.
  scope_delta_op d;
  for (const uint32_t index : {1u, 4u}) {
    Bytes bad = good;
    std::memcpy(&d, good.data() + h.off_deltas + index * sizeof d, sizeof d);
    *at<float>(bad, d.off_row) += 0.5f;
    seal(bad);
    CHECK_EQ(load(bad), SCOPE_E_INVALID);
  }
}

TEST(program, refuses_spoilt_encoders) {
  const Bytes good = everything().blob();
  const scope_program_header h = header(good);
  REFUSES(off_encoders, 0, scope_encoder, d_sae, 0);
  REFUSES(off_encoders, 0, scope_encoder, d_sae, 3);
  REFUSES(off_encoders, 0, scope_encoder, d_sae, 0xffffffffu);
  REFUSES(off_encoders, 0, scope_encoder, d_sae, 1u << 28);
  REFUSES(off_encoders, 0, scope_encoder, k, 0);
  REFUSES(off_encoders, 0, scope_encoder, k, 9);
  REFUSES(off_encoders, 0, scope_encoder, off_rows, UINT64_MAX - 63);
  REFUSES(off_encoders, 0, scope_encoder, off_rows, 4);
  REFUSES(off_encoders, 0, scope_encoder, off_bias, UINT64_MAX - 63);
  REFUSES(off_encoders, 0, scope_encoder, off_bias, 4);
}

TEST(program, refuses_alerts_that_wait_for_each_other) {
  Spec s;
  const uint32_t f = s.add_feature(0, Row(s.n_embd, 1.0f));
  const uint32_t a = s.add_trigger({f}, 0, 0.0f), b = s.add_trigger({f}, 0, 0.0f);
  for (const auto & [own, other] : {std::pair{a, b}, std::pair{b, a}}) {
    const uint32_t r = s.add_rule(SCOPE_OP_ALERT);
    s.rules[r].alert = own;
    s.rules[r].condition = other;
  }
  CHECK_EQ(load(s.blob()), SCOPE_E_INVALID);
  s.rules[1].condition = SCOPE_NONE;
  CHECK_EQ(load(s.blob()), SCOPE_OK);
}

TEST(program, random_damage_never_breaks_it) {
  const Bytes good = everything().blob();
  Random random(2);
  HookUnderTest hook(16, 4);
  int n_accepted = 0;
  for (int round = 0; round < 100000; round++) {
    Bytes bad = good;
    for (uint32_t i = 0, n = 1 + random.below(3); i < n; i++) {
      // Half of the damage to the tables and the header, which are a small part of the bytes.
      const uint32_t where = random.chance(0.5) ? random.below(static_cast<uint32_t>(bad.size()))
                                                : random.below(sizeof(scope_program_header));
      if (random.chance(0.5)) {
        bad[where] = static_cast<uint8_t>(random.below(256));
      } else {
        const uint32_t words[] = {0, 1, 2, 0x7fffffffu, 0x80000000u, 0xffffffffu, 0x7fc00000u, random.below(300)};
        std::memcpy(bad.data() + where / 4 * 4, &words[random.below(8)], 4);
      }
    }
    const uint64_t crc =
        scope::crc32(bad.data() + sizeof(scope_program_header), bad.size() - sizeof(scope_program_header));
    std::memcpy(bad.data() + offsetof(scope_program_header, checksum), &crc, sizeof crc);
    scope_program * program = nullptr;
    if (scope_program_load(bad.data(), bad.size(), &program, nullptr, 0) != SCOPE_OK) continue;
    // Accepted, so it must run without harm.
    if (n_accepted++ % 16 == 0 && scope_hook_install(hook.hook, program, ++hook.serial, nullptr, 0) == SCOPE_OK) {
      scope_request_begin(hook.hook, 0, 1, 2);
      hook.columns(0, 0, 3);
      for (int32_t layer = -1; layer < 4; layer++) {
        Row h = random.row(3 * 16);
        scope_hook_residual(hook.hook, layer, h.data(), 3);
      }
      scope_request_end(hook.hook, 0);
      hook.drain();
    } else {
      scope_program_free(program);
    }
  }
  CHECK(n_accepted > 0);
}
