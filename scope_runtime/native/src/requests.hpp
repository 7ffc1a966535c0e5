// One request on one sequence: what it has done so far and what it still holds back.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "log.hpp"
#include "scope_hook.h"

namespace scope {

/// Sums of one rule over a request's tokens: a SUMMARY event in the making.
struct RuleTotals {
  uint32_t n_tokens = 0, n_fired = 0, n_limited = 0, n_measured = 0;
  int32_t first_position = -1, last_position = -1;
  float activation_max = not_measured, dose_max = 0.0f;
  double activation_sum = 0.0, dose_sum = 0.0;

  void add(const RuleMeasure & measure, int32_t position);
};

/// All rules of one program.
struct ProgramTotals {
  uint32_t program;
  std::vector<RuleTotals> rules;
};

/// An event that a token caused. It is published when a later token confirms that token, and vanishes with it.
struct HeldEvent {
  int32_t position;  ///< of the token, following shifts
  scope_event event;
};

struct Abort {
  int32_t position;  ///< of the token, following shifts
  uint32_t rule;
  uint64_t serial;
};

/// Later than any position: the answer starts at the first column whose logits are wanted.
constexpr int32_t unknown_start = std::numeric_limits<int32_t>::max();

struct Request {
  uint64_t id = 0;
  uint32_t number = 0;                      ///< counts the hook's requests; marks the entries that this one computed
  int32_t answer_start = 0;                 ///< position of the first `generation` column, or unknown_start
  uint64_t n_columns = 0, n_unsteered = 0;  ///< computed, those taken back too
  uint64_t first_serial = 0;                ///< of the program that the first of them was computed under
  std::optional<Abort> abort;
  std::optional<int32_t> excess_position;  ///< where the dose limit first acted
  std::vector<HeldEvent> held;
  std::vector<ProgramTotals> forgotten;  ///< tokens that were decoded but have left the KV by a context shift
  uint32_t n_forgotten = 0;

  /// Tokens at [p0, p1) were rejected: whatever they caused did not happen.
  void retract(int32_t p0, int32_t p1);
  void shift(int32_t p0, int32_t p1, int32_t delta);
};

/// Adds one entry to the totals of its program.
void add_entry(std::vector<ProgramTotals> & totals, const SequenceLog & log, const Entry & entry);

}  // namespace scope
