#include "log.hpp"

#include <algorithm>

namespace scope {

size_t SequenceLog::index_at(int32_t position) const {
  const auto before = [](const Entry & e, int32_t p) { return e.position < p; };
  return static_cast<size_t>(std::lower_bound(entries_.begin(), entries_.end(), position, before) - entries_.begin());
}

void SequenceLog::put(Entry e, const RuleMeasure * rules, const TriggerState * triggers) {
  const size_t at = empty() || last_position() < e.position ? size() : index_at(e.position);
  if (at < size() && entries_[at].position == e.position) erase(at, at + 1);
  e.rules_at = static_cast<uint32_t>(rules_.size());
  e.triggers_at = static_cast<uint32_t>(triggers_.size());
  rules_.insert(rules_.end(), rules, rules + e.n_rules);
  triggers_.insert(triggers_.end(), triggers, triggers + e.n_triggers);
  n_live_rules_ += e.n_rules;
  n_live_triggers_ += e.n_triggers;
  entries_.insert(entries_.begin() + static_cast<ptrdiff_t>(at), e);
}

void SequenceLog::erase(size_t first, size_t end) {
  for (size_t i = first; i < end; i++) {
    n_live_rules_ -= entries_[i].n_rules;
    n_live_triggers_ -= entries_[i].n_triggers;
  }
  entries_.erase(entries_.begin() + static_cast<ptrdiff_t>(first), entries_.begin() + static_cast<ptrdiff_t>(end));
  // Half of the arrays unused is the price of not moving them for every token taken back.
  if (rules_.size() + triggers_.size() > 2 * (n_live_rules_ + n_live_triggers_) + 1024) compact();
}

void SequenceLog::compact() {
  std::vector<RuleMeasure> rules;
  std::vector<TriggerState> triggers;
  rules.reserve(n_live_rules_ * 3 / 2);
  triggers.reserve(n_live_triggers_ * 3 / 2);
  for (Entry & e : entries_) {
    const auto * r = rules_.data() + e.rules_at;
    const auto * t = triggers_.data() + e.triggers_at;
    e.rules_at = static_cast<uint32_t>(rules.size());
    e.triggers_at = static_cast<uint32_t>(triggers.size());
    rules.insert(rules.end(), r, r + e.n_rules);
    triggers.insert(triggers.end(), t, t + e.n_triggers);
  }
  rules_ = std::move(rules);
  triggers_ = std::move(triggers);
}

void SequenceLog::copy(const SequenceLog & from, size_t first, size_t end) {
  for (size_t i = first; i < end; i++) {
    Entry e = from.entries_[i];
    e.request = 0;
    put(e, from.rules(from.entries_[i]), from.triggers(from.entries_[i]));
  }
}

void SequenceLog::shift(size_t first, size_t end, int32_t delta) {
  for (size_t i = first; i < end; i++) {
    const int64_t moved = int64_t{entries_[i].position} + delta;
    entries_[i].position = static_cast<int32_t>(std::clamp<int64_t>(moved, -1, open_end));
  }
  sort();
  erase(0, index_at(0));
}

void SequenceLog::divide(size_t first, size_t end, int32_t divisor) {
  for (size_t i = first; i < end; i++) entries_[i].position /= divisor;
  sort();
}

void SequenceLog::sort() {
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const Entry & a, const Entry & b) { return a.position < b.position; });
}

}  // namespace scope
