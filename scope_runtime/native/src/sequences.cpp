#include "sequences.hpp"

#include <algorithm>
#include <chrono>

namespace scope {
namespace {

int64_t now_ns() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

scope_event new_event(scope_event_kind kind, int32_t seq, uint64_t request_id, uint64_t serial) {
  scope_event e{};
  e.kind = kind;
  e.sequence = seq;
  e.request_id = request_id;
  e.serial = serial;
  e.time_ns = now_ns();
  e.rule = SCOPE_NONE;
  e.layer = -2;
  e.first_position = e.last_position = -1;
  return e;
}

/// llama.cpp's convention for ranges: negative means open.
void normalise(int32_t & p0, int32_t & p1) {
  if (p0 < 0) p0 = 0;
  if (p1 < 0) p1 = open_end;
}

}  // namespace

Sequences::Sequences(Ring & ring) : ring_(ring), programs_(2) {
  programs_[unknown_program].serial = unknown_serial;
  for (KnownProgram & p : programs_) p.used = true;
}

Sequence * Sequences::find(int32_t seq) const {
  return seq >= 0 && static_cast<size_t>(seq) < sequences_.size() ? sequences_[static_cast<size_t>(seq)].get()
                                                                  : nullptr;
}

Sequence & Sequences::get(int32_t seq) {
  const auto i = static_cast<size_t>(seq);
  if (i >= sequences_.size()) sequences_.resize(i + 1);
  if (!sequences_[i]) sequences_[i] = std::make_unique<Sequence>();
  return *sequences_[i];
}

// -- programs

uint32_t Sequences::know(const Program * program, uint64_t serial, const Ubatch & u) {
  if (serial == 0) return no_program;
  for (size_t i = programs_.size(); i-- > 2;)
    if (programs_[i].used && programs_[i].serial == serial) return static_cast<uint32_t>(i);
  if (programs_.size() >= forget_at_) forget_programs(u);
  const auto unused = [](const KnownProgram & p) { return !p.used; };
  auto place = std::find_if(programs_.begin(), programs_.end(), unused);
  if (place == programs_.end()) place = programs_.emplace(programs_.end());
  *place = KnownProgram{serial, true, program != nullptr && program->on_excess() == SCOPE_EXCESS_ABORT, {}};
  if (program != nullptr)
    for (uint32_t r = 0; r < program->rules.size; r++) {
      const scope_rule & rule = program->rules[r];
      if (rule.alert == SCOPE_NONE) continue;
      const bool aborts = (rule.actions & SCOPE_ACTION_ABORT) != 0 && rule.mode == SCOPE_MODE_ENFORCE;
      place->alerts.push_back({r, rule.alert, program->points[program->triggers[rule.alert].point].layer, aborts});
    }
  return static_cast<uint32_t>(place - programs_.begin());
}

void Sequences::forget_programs(const Ubatch & u) {
  for (size_t i = 2; i < programs_.size(); i++) programs_[i].used = false;
  for (uint32_t l = 0; l < u.n_lanes(); l++) programs_[u.lane(l).known_program].used = true;
  for (const auto & s : sequences_) {
    if (!s) continue;
    for (const Entry & e : s->log.entries()) programs_[e.program].used = true;
    if (s->request)
      for (const ProgramTotals & t : s->request->forgotten) programs_[t.program].used = true;
  }
  const auto n_used = std::count_if(programs_.begin(), programs_.end(), [](const KnownProgram & p) { return p.used; });
  forget_at_ = 2 * static_cast<size_t>(n_used) + 64;
}

// -- ubatches

uint32_t Sequences::lane_for(Ubatch & u, const Assignment & assignment, int32_t seq) {
  const uint32_t index = assignment.index_of(seq);
  if (lane_of_program_[index] != SCOPE_NONE) return lane_of_program_[index];
  const NamedProgram & named = assignment.programs[index];
  // Known before it is among the lanes: what is not known yet must not count as used there.
  const uint32_t known = know(named.program.get(), named.serial, u);
  Lane & lane = u.add_lane();
  lane.program = named.program.get();
  lane.serial = named.serial;
  lane.known_program = known;
  return lane_of_program_[index] = u.n_lanes() - 1;
}

void Sequences::begin(Ubatch & u, const Assignment & assignment) {
  const uint32_t n = u.size();
  u.clear_lanes();
  lane_of_program_.assign(assignment.programs.size(), SCOPE_NONE);
  u.lane_of.assign(n, SCOPE_NONE);
  u.previous.assign(n, SCOPE_NONE);
  u.base.assign(n, 0);
  u.answer_start.assign(n, 0);
  u.base_states.clear();
  find_conflicts(u, assignment);
  for (uint32_t c = 0; c < n; c++) {
    const auto seq = static_cast<size_t>(u.columns[c].sequence);
    Sequence & s = get(u.columns[c].sequence);
    if (last_column_.size() < sequences_.size()) last_column_.resize(sequences_.size(), SCOPE_NONE);
    if (!s.request) continue;
    if (!u.raw_embeddings && !is_conflict(c)) u.lane_of[c] = lane_for(u, assignment, u.columns[c].sequence);
    if (s.request->answer_start == unknown_start && u.columns[c].output)
      s.request->answer_start = u.columns[c].position;
    u.answer_start[c] = s.request->answer_start;
    u.previous[c] = last_column_[seq];
    if (u.previous[c] == SCOPE_NONE) begin_sequence(s, u, c);
    if (u.steered(c)) last_column_[seq] = c;
  }
  for (const Column & c : u.columns) last_column_[static_cast<size_t>(c.sequence)] = SCOPE_NONE;
}

/// One residual cannot be steered twice: a column whose KV several requests share must run under one program for all of
/// them. Where it does not, it is left alone, which is an error and counted.
void Sequences::find_conflicts(Ubatch & u, const Assignment & assignment) {
  conflicts_.clear();
  for (const SharedColumn & shared : u.shared) {
    const int32_t own = u.columns[shared.column].sequence;
    const Sequence *first = find(own), *other = find(shared.sequence);
    if (shared.sequence == own || other == nullptr || !other->request) continue;
    const bool same = assignment.index_of(own) == assignment.index_of(shared.sequence);
    if (same && first != nullptr && first->request) continue;
    if (!is_conflict(shared.column)) conflicts_.push_back(shared.column);
  }
  u.n_conflicts = static_cast<uint32_t>(conflicts_.size());
}

bool Sequences::is_conflict(uint32_t column) const {
  return std::find(conflicts_.begin(), conflicts_.end(), column) != conflicts_.end();
}

void Sequences::begin_sequence(Sequence & s, Ubatch & u, uint32_t c) {
  if (!s.request) return;
  const int32_t position = u.columns[c].position;
  confirm(*s.request, position);
  // What the new tokens replace is as gone as what was removed.
  s.request->retract(position, open_end);

  if (!u.steered(c)) return;
  const Lane & lane = u.lane_at(c);

  u.base[c] = static_cast<uint32_t>(u.base_states.size());
  u.base_states.resize(u.base_states.size() + lane.n_triggers());
  const std::vector<Entry> & entries = s.log.entries();
  size_t i = s.log.index_at(position);
  // Columns of images in this same request have no program and no states; the count goes on over them.
  while (i > 0 && entries[i - 1].program == no_program && entries[i - 1].request == s.request->number) i--;
  if (i == 0 || entries[i - 1].program != lane.known_program) return;
  const TriggerState * states = s.log.triggers(entries[i - 1]);
  std::copy(states, states + lane.n_triggers(), u.base_states.begin() + u.base[c]);
}

void Sequences::commit(Ubatch & u) {
  u.carry_unvisited();
  for (uint32_t c = 0; c < u.size(); c++) {
    Sequence & s = get(u.columns[c].sequence);
    Entry e;
    e.position = u.columns[c].position;
    if (s.request) {
      e.request = s.request->number;
      s.request->n_columns++;
      s.request->n_unsteered += u.steered(c) ? 0u : 1u;
    } else {
      s.n_stray++;
    }
    if (u.steered(c)) {
      const Lane & lane = u.lane_at(c);
      e.program = lane.known_program;
      e.n_rules = static_cast<uint16_t>(lane.n_rules());
      e.n_triggers = static_cast<uint16_t>(lane.n_triggers());
      if (s.request->n_columns == 1) s.request->first_serial = programs_[e.program].serial;
    }
    s.log.put(e, u.rules_at(c), u.triggers_at(c));
    if (u.steered(c)) notice(*s.request, u, c);
  }
  for (const SharedColumn & shared : u.shared) {
    const Column & c = u.columns[shared.column];
    const SequenceLog & from = get(c.sequence).log;
    const size_t i = from.index_at(c.position);
    if (shared.sequence != c.sequence && i < from.size()) get(shared.sequence).log.copy(from, i, i + 1);
  }
}

/// Alerts that begin or end at this token, and the dose limit's first act: held back until the token is confirmed.
void Sequences::notice(Request & request, Ubatch & u, uint32_t c) {
  const Column & column = u.columns[c];
  const Lane & lane = u.lane_at(c);
  const KnownProgram & known = programs_[lane.known_program];
  for (const KnownProgram::Alert & alert : known.alerts) {
    const bool before = u.state_before(c, alert.trigger).firing();
    const bool after = u.triggers_at(c)[alert.trigger].firing();
    if (before == after) continue;
    note_alert(request, known, alert, column.sequence, column.position, u.rules_at(c)[alert.rule], after);
  }
  const Excess & excess = u.excess_at(c);
  if (excess.layer == no_layer) return;
  if (known.excess_aborts && !request.abort) request.abort = Abort{column.position, SCOPE_NONE, lane.serial};
  if (request.excess_position) return;
  request.excess_position = column.position;
  scope_event e = new_event(SCOPE_EVENT_DOSE_EXCESS, column.sequence, request.id, lane.serial);
  e.layer = excess.layer;
  e.n_tokens = 1;
  e.activation_max = not_measured;
  e.dose_max = excess.dose;
  e.first_position = e.last_position = column.position;
  request.held.push_back({column.position, e});
}

void Sequences::note_alert(Request & request, const KnownProgram & program, const KnownProgram::Alert & alert,
                           int32_t seq, int32_t position, const RuleMeasure & m, bool firing) {
  scope_event e =
      new_event(firing ? SCOPE_EVENT_ALERT_FIRING : SCOPE_EVENT_ALERT_RESOLVED, seq, request.id, program.serial);
  e.rule = alert.rule;
  e.layer = alert.layer;
  RuleTotals at_token;
  at_token.add(m, position);
  e.n_tokens = at_token.n_tokens;
  e.n_fired = at_token.n_fired;
  e.n_measured = at_token.n_measured;
  e.activation_max = m.activation;
  e.activation_sum = at_token.activation_sum;
  e.first_position = e.last_position = position;
  request.held.push_back({position, e});
  if (firing && alert.aborts && !request.abort) request.abort = Abort{position, alert.rule, program.serial};
}

/// A reused prefix is this request's prompt too: what its tokens set off then, they set off now.
void Sequences::recall(Request & request, int32_t seq, const SequenceLog & log) {
  const Entry * before = nullptr;
  for (const Entry & e : log.entries()) {
    if (e.n_rules == 0) continue;
    const KnownProgram & program = programs_[e.program];
    for (const KnownProgram::Alert & alert : program.alerts) {
      const bool was =
          before != nullptr && before->program == e.program && log.triggers(*before)[alert.trigger].firing();
      const bool is = log.triggers(e)[alert.trigger].firing();
      if (was != is) note_alert(request, program, alert, seq, e.position, log.rules(e)[alert.rule], is);
    }
    const RuleMeasure * rules = log.rules(e);
    const auto limited = [](const RuleMeasure & m) { return m.has(RuleMeasure::limited); };
    if (program.excess_aborts && !request.abort && std::any_of(rules, rules + e.n_rules, limited))
      request.abort = Abort{e.position, SCOPE_NONE, program.serial};
    before = &e;
  }
}

void Sequences::confirm(Request & request, int32_t before_position) {
  const auto confirmed = [&](const HeldEvent & h) {
    if (h.position >= before_position) return false;
    ring_.push(h.event);
    return true;
  };
  request.held.erase(std::remove_if(request.held.begin(), request.held.end(), confirmed), request.held.end());
}

// -- requests

bool Sequences::request_begin(int32_t seq, uint64_t id, int32_t n_prompt) {
  if (seq < 0 || seq >= max_sequences || n_prompt < 0) return false;
  Sequence & s = get(seq);
  if (s.request) return false;
  s.request = std::make_unique<Request>();
  s.request->id = id;
  s.request->number = ++n_requests_;
  s.request->answer_start = n_prompt > 0 ? n_prompt - 1 : unknown_start;
  recall(*s.request, seq, s.log);
  return true;
}

bool Sequences::request_end(int32_t seq) {
  Sequence * s = find(seq);
  if (s == nullptr || !s->request) return false;
  Request & request = *s->request;
  confirm(request, open_end);

  std::vector<ProgramTotals> totals = std::move(request.forgotten);
  for (const Entry & e : s->log.entries()) add_entry(totals, s->log, e);
  for (const ProgramTotals & t : totals) publish_summary(seq, request, t);

  const bool any = !s->log.empty();
  scope_event end =
      new_event(SCOPE_EVENT_REQUEST_END, seq, request.id, any ? programs_[s->log.entries().back().program].serial : 0);
  end.n_tokens = static_cast<uint32_t>(s->log.size()) + request.n_forgotten;
  end.activation_max = not_measured;
  if (any) {
    end.first_position = s->log.entries().front().position;
    end.last_position = s->log.last_position();
  }
  ring_.push(end);
  s->request.reset();
  return true;
}

void Sequences::publish_summary(int32_t seq, const Request & request, const ProgramTotals & totals) {
  for (uint32_t r = 0; r < totals.rules.size(); r++) {
    const RuleTotals & t = totals.rules[r];
    scope_event e = new_event(SCOPE_EVENT_SUMMARY, seq, request.id, programs_[totals.program].serial);
    e.rule = r;
    e.n_tokens = t.n_tokens;
    e.n_fired = t.n_fired;
    e.n_limited = t.n_limited;
    e.first_position = t.first_position;
    e.last_position = t.last_position;
    e.activation_max = t.activation_max;
    e.activation_sum = t.activation_sum;
    e.n_measured = t.n_measured;
    e.dose_max = t.dose_max;
    e.dose_sum = t.dose_sum;
    ring_.push(e);
  }
}

bool Sequences::request_status(int32_t seq, scope_request_state & out) const {
  const Sequence * s = find(seq);
  if (s == nullptr || !s->request) return false;
  out = {};
  out.abort_rule = SCOPE_NONE;
  out.abort_position = -1;
  if (const auto & abort = s->request->abort) {
    out.abort = 1;
    out.abort_rule = abort->rule;
    out.abort_serial = abort->serial;
    out.abort_position = abort->position;
  }
  if (!s->log.empty()) {
    const Entry & last = s->log.entries().back();
    if (last.n_triggers > 0)
      for (const KnownProgram::Alert & alert : programs_[last.program].alerts)
        out.n_firing += s->log.triggers(last)[alert.trigger].firing() ? 1u : 0u;
  }
  return true;
}

// -- memory

void Sequences::clear() {
  remove(-1, 0, -1);
}

void Sequences::remove(int32_t seq, int32_t p0, int32_t p1) {
  normalise(p0, p1);
  if (Sequence * s = find(seq)) remove(*s, p0, p1);
  if (seq >= 0) return;
  for (const auto & s : sequences_)
    if (s) remove(*s, p0, p1);
}

void Sequences::remove(Sequence & s, int32_t p0, int32_t p1) {
  const size_t first = s.log.index_at(p0), end = std::max(first, s.log.index_at(p1));
  if (s.request && end == s.log.size()) {
    s.request->retract(p0, p1);
  } else if (s.request && first < end) {
    // Tokens follow, so these were accepted: a context shift makes room. They leave the KV, not the record.
    for (size_t i = first; i < end; i++) {
      const Entry & e = s.log.entries()[i];
      if (e.request != s.request->number) continue;
      add_entry(s.request->forgotten, s.log, e);
      s.request->n_forgotten++;
    }
    confirm(*s.request, p1);
  }
  s.log.erase(first, end);
}

void Sequences::copy(int32_t from, int32_t to, int32_t p0, int32_t p1) {
  normalise(p0, p1);
  if (from == to || find(from) == nullptr || to < 0 || to >= max_sequences) return;
  Sequence & target = get(to);
  const SequenceLog & log = find(from)->log;
  const size_t first = log.index_at(p0);
  target.log.copy(log, first, std::max(first, log.index_at(p1)));
}

void Sequences::keep(int32_t seq) {
  for (size_t i = 0; i < sequences_.size(); i++)
    if (static_cast<int32_t>(i) != seq && sequences_[i]) remove(*sequences_[i], 0, open_end);
}

void Sequences::shift(int32_t seq, int32_t p0, int32_t p1, int32_t delta) {
  normalise(p0, p1);
  for (size_t i = 0; i < sequences_.size(); i++) {
    Sequence * s = sequences_[i].get();
    if (s == nullptr || s->log.empty() || (seq >= 0 && static_cast<int32_t>(i) != seq)) continue;
    const int32_t last = s->log.last_position();
    const size_t first = s->log.index_at(p0);
    s->log.shift(first, std::max(first, s->log.index_at(p1)), delta);
    if (!s->request) continue;
    s->request->shift(p0, p1, delta);
    // Once the answer has begun, a shift of the newest token moves where the next one lands, but not which answer token
    // it is: without this, a context shift would carry the generation back into the prompt's phase.
    if (last >= p0 && last < p1 && last >= s->request->answer_start) s->request->answer_start += delta;
  }
}

void Sequences::divide(int32_t seq, int32_t p0, int32_t p1, int32_t divisor) {
  normalise(p0, p1);
  if (divisor < 1) return;
  for (size_t i = 0; i < sequences_.size(); i++) {
    Sequence * s = sequences_[i].get();
    if (s == nullptr || (seq >= 0 && static_cast<int32_t>(i) != seq)) continue;
    const size_t first = s->log.index_at(p0);
    s->log.divide(first, std::max(first, s->log.index_at(p1)), divisor);
    if (s->request && s->request->answer_start >= p0 && s->request->answer_start < p1)
      s->request->answer_start /= divisor;
  }
}

void Sequences::restored(int32_t seq, int32_t p0, int32_t p1) {
  if (seq < 0 || seq >= max_sequences) return;
  Sequence & s = get(seq);
  remove(s, 0, open_end);
  Entry e;
  e.program = unknown_program;
  for (e.position = p0; e.position < p1; e.position++) s.log.put(e, nullptr, nullptr);
}

void Sequences::restored_all(int32_t n_positions) {
  for (size_t i = 0; i < sequences_.size(); i++)
    if (sequences_[i] && !sequences_[i]->log.empty()) restored(static_cast<int32_t>(i), 0, n_positions);
}

// -- reading

size_t Sequences::spans(int32_t seq, scope_span * out, size_t max) const {
  const Sequence * s = find(seq);
  if (s == nullptr) return 0;
  size_t n = 0;
  scope_span run{};
  const auto close = [&] {
    if (n > 0 && n <= max) out[n - 1] = run;
  };
  for (const Entry & e : s->log.entries()) {
    const uint64_t serial = programs_[e.program].serial;
    if (n > 0 && serial == run.serial && e.position <= run.to_position) {
      run.to_position = e.position + 1;
      continue;
    }
    close();
    n++;
    run = {e.position, e.position + 1, serial};
  }
  close();
  return n;
}

size_t Sequences::measured(int32_t seq, int32_t position, float * activation, float * dose, uint8_t * fired,
                           size_t max) const {
  const Sequence * s = find(seq);
  if (s == nullptr) return 0;
  const size_t i = s->log.index_at(position);
  if (i == s->log.size() || s->log.entries()[i].position != position) return 0;
  const Entry & e = s->log.entries()[i];
  for (uint32_t r = 0; r < e.n_rules && r < max; r++) {
    const RuleMeasure & m = s->log.rules(e)[r];
    if (activation != nullptr) activation[r] = m.activation;
    if (dose != nullptr) dose[r] = m.dose;
    if (fired != nullptr) fired[r] = m.has(RuleMeasure::fired) ? 1 : 0;
  }
  return e.n_rules;
}

}  // namespace scope
