// A program in the making: what the Python compiler does, for the tests.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "scope_hook.h"
#include "scope_program.h"

namespace test {

constexpr float infinity = std::numeric_limits<float>::infinity();
using Row = std::vector<float>;
using Bytes = std::vector<uint8_t>;

struct FeatureSpec {
  scope_feature f;
  Row row;
};

struct DeltaSpec {
  scope_delta_op d;
  Row rows;  ///< rank rows
};

struct PointSpec {
  int32_t layer;
  std::vector<FeatureSpec> features;
  std::vector<DeltaSpec> deltas;
};

struct TriggerSpec {
  scope_trigger t;
  std::vector<uint32_t> features;
};

struct EncoderSpec {
  uint32_t k;
  Row rows, bias;
};

struct Spec {
  uint32_t n_embd = 16, n_layer = 4;
  uint32_t on_excess = SCOPE_EXCESS_NONE;
  float dose_max = infinity;
  std::vector<scope_rule> rules;
  std::vector<PointSpec> points;  ///< sorted by layer
  std::vector<TriggerSpec> triggers;
  std::vector<EncoderSpec> encoders;

  Bytes blob() const;

  // Shorthands with harmless values; each returns the new item's index.
  uint32_t add_rule(uint32_t op, uint32_t mode = SCOPE_MODE_ENFORCE);
  PointSpec & point(int32_t layer);
  /// Index over all points: add features in order of layers.
  uint32_t add_feature(int32_t layer, Row row, uint32_t gate = SCOPE_GATE_NONE, float bias = 0.0f);
  void add_delta(int32_t layer, uint32_t rule, uint32_t kind, Row rows, float a = 0.0f, uint32_t feature = SCOPE_NONE,
                 float b = 0.0f);
  uint32_t add_trigger(std::vector<uint32_t> features, uint32_t point_index, float above);
};

/// Puts the right checksum into a changed blob.
void seal(Bytes & blob);

/// Owns a hook and speaks its C interface.
class HookUnderTest {
 public:
  HookUnderTest(uint32_t n_embd, uint32_t n_layer, uint32_t ring_events = 1024);
  ~HookUnderTest() { scope_hook_free(hook); }
  HookUnderTest(const HookUnderTest &) = delete;

  /// Returns the serial, or the negative code.
  int64_t install(const Bytes & blob);
  int64_t hold(const Bytes & blob);
  /// Sequence i under serials[i], others under nothing; returns the number, or the negative code.
  int64_t assign(const std::vector<uint64_t> & serials, uint64_t others = 0);
  /// One sequence's columns [from, to), token = position, all outputs wanted.
  void columns(int32_t seq, int32_t from, int32_t to);
  /// columns, one residual at `layer` whose column i holds `values[i]` in every element, end.
  void run(int32_t seq, int32_t from, int32_t layer, const std::vector<float> & values);
  std::vector<scope_event> drain();
  scope_hook_stats stats() const;

  scope_hook * hook = nullptr;
  uint64_t serial = 0;

 private:
  using Take = int(scope_hook *, scope_program *, uint64_t, char *, size_t);
  int64_t hand_over(const Bytes & blob, Take * take);

  uint32_t n_embd_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(engine_() % n); }
  bool chance(double p) { return static_cast<double>(engine_() >> 11) * 0x1p-53 < p; }
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(static_cast<double>(engine_() >> 11) * 0x1p-53);
  }
  Row row(size_t n, float size = 1.0f);
  /// `rank` orthonormal rows.
  Row basis(uint32_t rank, uint32_t n);

 private:
  std::mt19937_64 engine_;
};

}  // namespace test
