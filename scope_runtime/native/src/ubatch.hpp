// One ubatch on its way through the model: its columns, and what has been measured at them so far.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "program.hpp"
#include "triggers.hpp"

namespace scope {

constexpr float not_measured = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t no_layer = std::numeric_limits<int32_t>::min();

/// What one rule did at one token.
struct RuleMeasure {
  enum Flag : uint32_t { in_scope = 1, measured = 2, fired = 4, limited = 8 };

  float activation = not_measured;
  float dose = not_measured;
  uint32_t flags = 0;

  bool has(Flag flag) const { return (flags & flag) != 0; }
};

/// What the columns attach point (or scope_hook_columns) says about one column.
struct Column {
  int32_t token = 0, position = 0, sequence = 0;
  bool output = true;

  bool operator==(const Column & o) const {
    return token == o.token && position == o.position && sequence == o.sequence && output == o.output;
  }
};

/// Further sequences that a column's KV belongs to.
struct SharedColumn {
  uint32_t column;
  int32_t sequence;
};

/// The dose limit's first excess at a column.
struct Excess {
  int32_t layer = no_layer;
  float dose = 0.0f;
};

/// The columns of an ubatch that run under one program.
struct Lane {
  const Program * program = nullptr;  ///< pinned while the ubatch is open; null: does nothing
  uint64_t serial = 0;
  uint32_t known_program = 0;    ///< index in Sequences' table
  std::vector<uint8_t> visited;  ///< by point

  uint32_t n_rules() const { return program != nullptr ? program->rules.size : 0; }
  uint32_t n_triggers() const { return program != nullptr ? program->triggers.size : 0; }
  uint32_t n_features() const { return program != nullptr ? program->features.size : 0; }
  /// Index of the lane's point at a layer, or SCOPE_NONE.
  uint32_t point_at(int32_t layer) const { return program != nullptr ? program->point_at(layer) : SCOPE_NONE; }
};

struct Ubatch {
  bool open = false;
  bool by_hand = false;
  bool raw_embeddings = false;  ///< images, audio: columns without tokens are not steered

  std::vector<Column> columns;
  std::vector<SharedColumn> shared;
  std::vector<uint32_t> outputs;  ///< columns whose logits are wanted: the last block's rows

  // By column, filled by Sequences::begin:
  std::vector<uint32_t> lane_of;      ///< SCOPE_NONE: not steered, its sequence has no open request
  std::vector<uint32_t> previous;     ///< the sequence's column before it, or SCOPE_NONE
  std::vector<uint32_t> base;         ///< where `previous` is none: first of its sequence's states in base_states
  std::vector<int32_t> answer_start;  ///< position of the request's first `generation` column
  std::vector<TriggerState> base_states;
  uint32_t n_conflicts = 0;  ///< columns shared by requests under different programs: not steered

  int32_t last_layer = no_layer;  ///< deepest hook point visited

  uint32_t size() const { return static_cast<uint32_t>(columns.size()); }

  /// One for each program that a column runs under, in order of appearance.
  const std::vector<Lane> & lanes() const { return lanes_; }
  uint32_t n_lanes() const { return n_lanes_; }
  Lane & lane(uint32_t l) { return lanes_[l]; }
  const Lane & lane(uint32_t l) const { return lanes_[l]; }
  bool steered(uint32_t c) const { return lane_of[c] != SCOPE_NONE; }
  /// The lane that a steered column is in.
  const Lane & lane_at(uint32_t c) const { return lanes_[lane_of[c]]; }
  void clear_lanes() { n_lanes_ = 0; }
  Lane & add_lane();

  /// By rule, trigger, feature of the column's own program.
  RuleMeasure * rules_at(uint32_t c) { return rules_.data() + rules_first_[c]; }
  const RuleMeasure * rules_at(uint32_t c) const { return rules_.data() + rules_first_[c]; }
  TriggerState * triggers_at(uint32_t c) { return triggers_.data() + triggers_first_[c]; }
  float * z_at(uint32_t c) { return z_.data() + z_first_[c]; }
  Excess & excess_at(uint32_t c) { return excess_[c]; }
  TriggerState state_before(uint32_t c, uint32_t trigger) {
    return previous[c] != SCOPE_NONE ? triggers_at(previous[c])[trigger] : base_states[base[c] + trigger];
  }

  /// Sizes the measurements and decides which rules are in scope at which column.
  void prepare();
  /// Carries the states of triggers whose point was never reached over every column; call before committing.
  void carry_unvisited();

 private:
  bool rule_in_scope(const scope_rule & rule, uint32_t c) const;

  std::vector<Lane> lanes_;  ///< more than n_lanes_, so that their buffers stay
  uint32_t n_lanes_ = 0;
  std::vector<size_t> rules_first_, triggers_first_, z_first_;  ///< by column
  std::vector<RuleMeasure> rules_;
  std::vector<TriggerState> triggers_;
  std::vector<float> z_;
  std::vector<Excess> excess_;
};

}  // namespace scope
