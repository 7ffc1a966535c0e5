// A watched value's state over the tokens of a sequence: alert, condition and switch alike.
#pragma once

#include <cstdint>

#include "scope_program.h"

namespace scope {

/// Four bytes, kept for every token, so that going back to a token is reading its entry.
class TriggerState {
 public:
  bool firing() const { return (bits_ & firing_bit) != 0; }
  /// Fired at some token of this run: what `switch_on` asks.
  bool ever() const { return (bits_ & ever_bit) != 0; }

  /// State after one more token with this value. NaN: not active (not measured, or out of the alert's scope).
  TriggerState next(const scope_trigger & trigger, float value) const;

 private:
  static constexpr uint32_t firing_bit = 1u << 31, ever_bit = 1u << 30, count_mask = ever_bit - 1;

  static TriggerState make(bool firing, bool ever, uint32_t count);
  uint32_t count() const { return bits_ & count_mask; }

  // While not firing, the count is of consecutive active tokens; while firing, of tokens left to keep firing.
  uint32_t bits_ = 0;
};

}  // namespace scope
