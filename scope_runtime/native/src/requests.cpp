#include "requests.hpp"

#include <algorithm>
#include <cmath>

namespace scope {
namespace {

bool within(int32_t position, int32_t p0, int32_t p1) {
  return position >= p0 && position < p1;
}

}  // namespace

void RuleTotals::add(const RuleMeasure & m, int32_t position) {
  if (!m.has(RuleMeasure::measured)) return;
  n_tokens++;
  if (m.has(RuleMeasure::limited)) n_limited++;
  if (!std::isnan(m.activation)) {
    n_measured++;
    activation_sum += double{m.activation};
    if (std::isnan(activation_max) || m.activation > activation_max) activation_max = m.activation;
  }
  if (!m.has(RuleMeasure::fired)) return;
  n_fired++;
  if (first_position < 0) first_position = position;
  last_position = position;
  if (std::isnan(m.dose)) return;
  dose_sum += double{m.dose};
  dose_max = std::max(dose_max, m.dose);
}

void Request::retract(int32_t p0, int32_t p1) {
  const auto gone = [&](const HeldEvent & h) { return within(h.position, p0, p1); };
  held.erase(std::remove_if(held.begin(), held.end(), gone), held.end());
  if (abort && within(abort->position, p0, p1)) abort.reset();
  if (excess_position && within(*excess_position, p0, p1)) excess_position.reset();
}

void Request::shift(int32_t p0, int32_t p1, int32_t delta) {
  for (HeldEvent & h : held)
    if (within(h.position, p0, p1)) h.position += delta;
  if (abort && within(abort->position, p0, p1)) abort->position += delta;
  if (excess_position && within(*excess_position, p0, p1)) *excess_position += delta;
}

void add_entry(std::vector<ProgramTotals> & totals, const SequenceLog & log, const Entry & e) {
  if (e.n_rules == 0) return;
  const auto same = [&](const ProgramTotals & t) { return t.program == e.program; };
  auto found = std::find_if(totals.begin(), totals.end(), same);
  if (found == totals.end()) {
    totals.push_back({e.program, std::vector<RuleTotals>(e.n_rules)});
    found = totals.end() - 1;
  }
  for (uint32_t r = 0; r < e.n_rules; r++) found->rules[r].add(log.rules(e)[r], e.position);
}

}  // namespace scope
