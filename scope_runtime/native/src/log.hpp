// What was measured at every position of one sequence's KV: the part of the past that can still be taken back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "ubatch.hpp"

namespace scope {

constexpr int32_t open_end = std::numeric_limits<int32_t>::max();

/// One position. Its measurements lie in the log's flat arrays, so that a token costs no allocation of its own.
struct Entry {
  int32_t position = 0;
  uint32_t program = 0;  ///< index in Sequences' table of programs
  uint32_t request = 0;  ///< number of the request that computed it; 0: none, or another sequence's
  uint32_t rules_at = 0, triggers_at = 0;
  uint16_t n_rules = 0, n_triggers = 0;
};

class SequenceLog {
 public:
  const std::vector<Entry> & entries() const { return entries_; }
  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  int32_t last_position() const { return entries_.back().position; }
  const RuleMeasure * rules(const Entry & e) const { return rules_.data() + e.rules_at; }
  const TriggerState * triggers(const Entry & e) const { return triggers_.data() + e.triggers_at; }

  /// Index of the first entry at or after a position.
  size_t index_at(int32_t position) const;

  /// Adds a position, or replaces what was there. `e`'s places in the flat arrays are set here.
  void put(Entry e, const RuleMeasure * rules, const TriggerState * triggers);
  void erase(size_t first, size_t end);
  void clear() { erase(0, size()); }
  /// Copies entries [first, end) of another log as reused ones.
  void copy(const SequenceLog & from, size_t first, size_t end);
  /// Moves entries [first, end); those that fall below 0 are gone, as llama.cpp's are.
  void shift(size_t first, size_t end, int32_t delta);
  void divide(size_t first, size_t end, int32_t divisor);

 private:
  void sort();
  void compact();

  std::vector<Entry> entries_;  ///< by position; equal positions only after divide
  std::vector<RuleMeasure> rules_;
  std::vector<TriggerState> triggers_;
  size_t n_live_rules_ = 0, n_live_triggers_ = 0;
};

}  // namespace scope
