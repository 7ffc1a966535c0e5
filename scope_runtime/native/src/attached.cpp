#include "attached.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "attach.hpp"
#include "columns.hpp"

namespace scope {
namespace {

constexpr int32_t idle_ms = 1000;  ///< between two looks at an idle queue, should a wake have been lost
constexpr int32_t busy_ms = 20;    ///< while an ubatch is computed, whose end applies what waits

bool is_slot(int32_t slot) {
  return slot >= 0 && slot < SCOPE_MAX_SLOTS;
}

/// A program's file, whole; throws std::runtime_error.
std::vector<std::byte> read_program(const std::string & path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) throw std::runtime_error("cannot open " + path + ": " + std::strerror(errno));
  const struct Close {
    int fd;
    ~Close() { ::close(fd); }
  } close{fd};
  struct stat s{};
  if (::fstat(fd, &s) != 0 || !S_ISREG(s.st_mode) || s.st_uid != ::geteuid() || (s.st_mode & 077) != 0)
    throw std::runtime_error(path + " is not a file of this user alone");
  std::vector<std::byte> out(static_cast<size_t>(s.st_size));
  for (size_t n = 0; n < out.size();) {
    const ssize_t got = ::read(fd, out.data() + n, out.size() - n);
    if (got <= 0) throw std::runtime_error(path + " is cut short");
    n += static_cast<size_t>(got);
  }
  return out;
}

/// The last candidate before block 0: in Gemma that is the scaled embedding, not the raw one.
std::string embedding_of(const std::vector<std::string> & names) {
  const auto block_0 = std::find(names.begin(), names.end(), "l_out-0");
  std::string out;
  for (auto name = names.begin(); name != block_0; ++name)
    if (name->rfind("l_out-", 0) != 0) out = *name;
  return out;
}

}  // namespace

Attached::Attached(const std::string & folder)
    : file_(SharedFile::open(folder, "server.lock")), serial_of_slot_(SCOPE_MAX_SLOTS, 0), slots_(SCOPE_MAX_SLOTS) {
  SharedHeader & h = file_.header();
  scope_server_status before{};
  if (!h.status.read(before) || before.state != SCOPE_SERVER_NONE)
    throw std::runtime_error("the control folder was another server's, which has ended; each needs its own");
  hook_ = std::make_unique<scope_hook>(h.n_embd, h.n_layer, file_.ring());
  hook_->attachment = this;
  for (int32_t slot = 0; slot < SCOPE_MAX_SLOTS; slot++) {
    scope_slot_state & s = slots_[static_cast<size_t>(slot)];
    s.slot = slot;
    s.answer_start = s.last_position = s.abort_position = -1;
    h.slots[slot].write(s);
  }
  publish_status();
  scope_attach_default(hook_.get());
  // The server's signals are not for a thread that it does not know.
  sigset_t all, before_us;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before_us);
  thread_ = std::thread([this] { work(); });
  pthread_sigmask(SIG_SETMASK, &before_us, nullptr);
}

Attached::~Attached() {
  stop_.store(true);
  wake(file_.header().written);
  thread_.join();
  detach(hook_.get());
}

// -- recognising the context

bool Attached::recognises(const void * ubatch) {
  if (expected_.empty() || recognised_) return false;
  size_t n = expected_.size();
  // llama-server may send a prompt's last tokens in an ubatch of their own.
  for (; n >= 2; n--) {
    const std::vector<Column> first(expected_.begin(), expected_.begin() + static_cast<ptrdiff_t>(n));
    if (recognise_ubatch_layout(ubatch, first)) break;
  }
  if (n < 2) return false;
  n_matched_ = 0;
  hook_->record.on = true;
  hook_->record.names.clear();
  return true;
}

void Attached::arrives(const void * ubatch) {
  if (expected_.empty() || n_matched_ == expected_.size()) return;
  ReadColumns read;
  if (read_columns(ubatch, read) && read.columns.size() <= expected_.size() - n_matched_ &&
      std::equal(read.columns.begin(), read.columns.end(), expected_.begin() + static_cast<ptrdiff_t>(n_matched_)))
    n_matched_ += read.columns.size();
}

/// The expected batch went through the graph: what its nodes are called is known now.
void Attached::expected_computed() {
  if (expected_.empty() || n_matched_ < expected_.size()) return;
  expected_.clear();
  std::vector<std::string> names;
  names.swap(hook_->record.names);
  hook_->record.on = false;
  hook_->embedding_node = embedding_of(names);
  n_layers_seen_ = 0;
  for (uint32_t layer = 0; layer < hook_->n_layer; layer++) {
    const std::string name = "l_out-" + std::to_string(layer);
    n_layers_seen_ += std::find(names.begin(), names.end(), name) != names.end() ? 1u : 0u;
  }
  recognised_ = true;
}

void Attached::context_gone() {
  const std::lock_guard<std::mutex> lock(gate_);
  hook_->commit();
  recognised_ = false;
  hook_->attached.store(0);
  hook_->record.on = false;
  publish_status();
}

// -- commands

void Attached::between_ubatches() {
  expected_computed();
  while (apply_next(false) == Next::applied) {
  }
  int32_t last = -1;
  for (const Column & c : hook_->ubatch.columns) {
    if (c.sequence != last) publish_slot(c.sequence, false);
    last = c.sequence;
  }
  publish_status();
}

void Attached::work() {
  const SharedHeader & h = file_.header();
  while (!stop_.load()) {
    const uint64_t written = h.written.load(std::memory_order_acquire);
    const Next next = apply_next(true);
    if (next == Next::applied) continue;
    hook_->slot.collect();
    bool waits = false;
    {
      const std::lock_guard<std::mutex> lock(gate_);
      waits = next_ != written && !corrupt_;
      publish_status();
    }
    wait_change(h.written, written, waits ? busy_ms : idle_ms);
  }
}

/// With `heavy_too` on our own thread, which takes the gate itself; without on the decode thread, which has it.
Attached::Next Attached::apply_next(bool heavy_too) {
  std::unique_lock<std::mutex> lock(gate_, std::defer_lock);
  if (heavy_too) lock.lock();
  SharedHeader & h = file_.header();
  const uint64_t written = h.written.load(std::memory_order_acquire);
  if (written == next_ || loading_ || corrupt_) return Next::none;
  if (written - next_ > max_commands) {
    corrupt_ = true;
    return Next::none;
  }
  SharedCommand & record = h.commands[next_ % max_commands];
  // A copy, because the other process may change it at any time.
  const scope_command command = record.command;
  Outcome outcome;
  if (command.kind == SCOPE_COMMAND_HOLD || command.kind == SCOPE_COMMAND_RELEASE) {
    if (!heavy_too) return Next::heavy;
    loading_ = true;
    lock.unlock();
    outcome = apply(command);
    lock.lock();
    loading_ = false;
    if (command.kind == SCOPE_COMMAND_HOLD && outcome.code == SCOPE_OK) last_serial_ = command.serial;
  } else {
    if (heavy_too && hook_->ubatch.open) return Next::none;
    outcome = apply(command);
  }
  record.code = outcome.code;
  std::snprintf(record.sentence, sizeof record.sentence, "%s", outcome.sentence.c_str());
  next_++;
  publish_status();
  h.applied.store(next_, std::memory_order_release);
  wake(h.applied);
  return Next::applied;
}

Attached::Outcome Attached::apply(const scope_command & c) {
  try {
    switch (c.kind) {
      case SCOPE_COMMAND_HOLD:
        return hold(c.serial);
      case SCOPE_COMMAND_RELEASE:
        return hook_->slot.release(c.serial) ? Outcome{} : Outcome{SCOPE_E_STATE, "the program is not held"};
      case SCOPE_COMMAND_ASSIGN:
        return assign(c);
      case SCOPE_COMMAND_BEGIN:
        return begin(c);
      case SCOPE_COMMAND_END:
        return end(c.slot);
      case SCOPE_COMMAND_EXPECT:
        return expect(c);
      default:
        return {SCOPE_E_INVALID, "there is no such command"};
    }
  } catch (const std::bad_alloc &) {
    return {SCOPE_E_MEMORY, "there is not enough memory"};
  } catch (const std::exception & e) {
    return {SCOPE_E_INVALID, e.what()};
  }
}

Attached::Outcome Attached::hold(uint64_t serial) {
  const std::vector<std::byte> bytes = read_program(file_.folder() + "/program-" + std::to_string(serial) + ".bin");
  std::shared_ptr<const Program> program = Program::load(bytes.data(), bytes.size());
  if (!hook_->fits(*program)) return {SCOPE_E_MISMATCH, "the program is for a model of another shape"};
  if (!hook_->slot.hold(std::move(program), serial))
    return {SCOPE_E_STATE, "the serial is 0 or not above those before"};
  return {};
}

bool Attached::publish_assignment() {
  std::vector<Assigned> assigned;
  for (int32_t slot = 0; slot < SCOPE_MAX_SLOTS; slot++)
    if (serial_of_slot_[static_cast<size_t>(slot)] != others_)
      assigned.push_back({slot, serial_of_slot_[static_cast<size_t>(slot)]});
  return hook_->publish(others_, assigned) != 0;
}

Attached::Outcome Attached::assign(const scope_command & c) {
  if (c.n > SCOPE_MAX_SLOTS) return {SCOPE_E_INVALID, "an assignment of more slots than there can be"};
  std::vector<uint64_t> wanted(SCOPE_MAX_SLOTS, c.serial);
  for (uint32_t i = 0; i < c.n; i++) {
    if (!is_slot(c.assigned[i].slot)) return {SCOPE_E_INVALID, "a slot is out of range"};
    wanted[static_cast<size_t>(c.assigned[i].slot)] = c.assigned[i].serial;
  }
  const uint64_t others = others_;
  others_ = c.serial;
  serial_of_slot_.swap(wanted);
  if (publish_assignment()) {
    for (int32_t slot = 0; slot < SCOPE_MAX_SLOTS; slot++)
      if (serial_of_slot_[static_cast<size_t>(slot)] != wanted[static_cast<size_t>(slot)]) publish_slot(slot, false);
    return {};
  }
  others_ = others;
  serial_of_slot_.swap(wanted);
  return {SCOPE_E_STATE, "a program is neither held nor in force"};
}

Attached::Outcome Attached::begin(const scope_command & c) {
  if (!is_slot(c.slot)) return {SCOPE_E_INVALID, "the slot is out of range"};
  if (!recognised_) return {SCOPE_E_STATE, "the server's context is not proved"};
  const Sequence * sequence = hook_->sequences.look(c.slot);
  if (sequence != nullptr && sequence->request) return {SCOPE_E_STATE, "a request is open on this slot"};
  uint64_t & serial = serial_of_slot_[static_cast<size_t>(c.slot)];
  const uint64_t before = serial;
  serial = c.serial;
  if (serial != before && !publish_assignment()) {
    serial = before;
    return {SCOPE_E_STATE, "the program is neither held nor in force"};
  }
  if (!hook_->sequences.request_begin(c.slot, c.request_id, c.n_prompt))
    return {SCOPE_E_INVALID, "a request has a slot and a prompt"};
  publish_slot(c.slot, true);
  return {};
}

Attached::Outcome Attached::end(int32_t slot) {
  const Sequence * sequence = is_slot(slot) ? hook_->sequences.look(slot) : nullptr;
  if (sequence == nullptr || !sequence->request) return {SCOPE_E_STATE, "no request is open on this slot"};
  publish_slot(slot, true);  // what it came to
  hook_->sequences.request_end(slot);
  scope_slot_state & s = slots_[static_cast<size_t>(slot)];
  s.open = 0;
  file_.header().slots[slot].write(s);
  return {};
}

Attached::Outcome Attached::expect(const scope_command & c) {
  if (!is_slot(c.slot) || c.n > SCOPE_MAX_EXPECTED || c.n == 1)
    return {SCOPE_E_INVALID, "a proof needs a slot and two tokens or more"};
  if (recognised_) return {};
  expected_.clear();
  n_matched_ = 0;
  for (uint32_t i = 0; i < c.n; i++) expected_.push_back({c.tokens[i], static_cast<int32_t>(i), c.slot, i + 1 == c.n});
  return {};
}

// -- what the controller reads

void Attached::publish_slot(int32_t slot, bool with_spans) {
  if (!is_slot(slot)) return;
  scope_slot_state & out = slots_[static_cast<size_t>(slot)];
  out.serial = serial_of_slot_[static_cast<size_t>(slot)];
  const Sequence * s = hook_->sequences.look(slot);
  if (s != nullptr) {
    out.n_stray = s->n_stray;
    out.last_position = s->log.empty() ? -1 : s->log.last_position();
    if (s->request) {
      out.open = 1;
      out.request_id = s->request->id;
      out.first_serial = s->request->first_serial;
      out.n_columns = s->request->n_columns;
      out.n_unsteered = s->request->n_unsteered;
      out.answer_start = s->request->answer_start == unknown_start ? -1 : s->request->answer_start;
      scope_request_state state{};
      hook_->sequences.request_status(slot, state);
      out.abort = state.abort;
      out.abort_rule = state.abort_rule;
      out.abort_serial = state.abort_serial;
      out.abort_position = state.abort_position;
    }
  }
  if (with_spans) out.n_spans = static_cast<uint32_t>(hook_->sequences.spans(slot, out.spans, SCOPE_MAX_SPANS));
  file_.header().slots[slot].write(out);
}

void Attached::publish_status() {
  SharedHeader & h = file_.header();
  scope_server_status s{};
  s.abi_version = SCOPE_ABI_VERSION;
  s.state = recognised_                                      ? SCOPE_SERVER_RECOGNISED
            : h.reached.load(std::memory_order_relaxed) != 0 ? SCOPE_SERVER_REACHED
                                                             : SCOPE_SERVER_LOADED;
  s.pid = static_cast<uint64_t>(::getpid());
  s.last_serial = last_serial_;
  s.attached = hook_->attached.load();
  s.n_layers_seen = n_layers_seen_;
  scope_hook_get_stats(hook_.get(), &s.stats);
  std::snprintf(s.embedding_node, sizeof s.embedding_node, "%s", hook_->embedding_node.c_str());
  if (corrupt_) std::snprintf(s.sentence, sizeof s.sentence, "the command queue is damaged: no more is taken from it");
  h.status.write(s);
}

}  // namespace scope
