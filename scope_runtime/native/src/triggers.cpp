#include "triggers.hpp"

#include <algorithm>
#include <cmath>

namespace scope {
namespace {

bool is_active(const scope_trigger & t, float value, bool firing) {
  if (value > t.above || value < t.below) return true;
  // At the bound itself it stays only where a band was asked for: a gated activation is often exactly 0.
  if (!firing || !(t.hysteresis > 0.0f)) return false;
  // An unused bound is infinite and stays out of reach whatever the hysteresis.
  return (std::isfinite(t.above) && value >= t.above - t.hysteresis) ||
         (std::isfinite(t.below) && value <= t.below + t.hysteresis);
}

}  // namespace

TriggerState TriggerState::make(bool firing, bool ever, uint32_t count) {
  TriggerState s;
  s.bits_ = (firing ? firing_bit : 0) | (ever ? ever_bit : 0) | count;
  return s;
}

TriggerState TriggerState::next(const scope_trigger & t, float value) const {
  if (firing()) {
    if (is_active(t, value, true)) return make(true, true, t.keep_tokens);
    if (count() > 0) return make(true, true, count() - 1);
    return make(false, true, 0);
  }
  if (!is_active(t, value, false)) return make(false, ever(), 0);
  const uint32_t wanted = std::max(t.for_tokens, 1u);
  const uint32_t active = std::min(count() + 1, wanted);
  return active == wanted ? make(true, true, t.keep_tokens) : make(false, ever(), active);
}

}  // namespace scope
