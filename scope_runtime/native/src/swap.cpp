#include "swap.hpp"

#include <algorithm>

namespace scope {
namespace {

const NamedProgram nothing{};

}  // namespace

AssignmentSlot::AssignmentSlot() {
  auto first = std::make_unique<Assignment>();
  first->programs.push_back(nothing);
  current_.store(first.release());
}

bool AssignmentSlot::hold(std::shared_ptr<const Program> program, uint64_t serial) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!take_serial(serial)) return false;
  held_.emplace(serial, NamedProgram{serial, std::move(program)});
  last_serial_ = serial;
  return true;
}

bool AssignmentSlot::release(uint64_t serial) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool held = held_.erase(serial) != 0;
  collect_locked();
  return held;
}

bool AssignmentSlot::install(std::shared_ptr<const Program> program, uint64_t serial) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!take_serial(serial)) return false;
  auto next = std::make_unique<Assignment>();
  next->programs.push_back({serial, std::move(program)});
  publish(std::move(next));
  last_serial_ = serial;
  return true;
}

uint64_t AssignmentSlot::assign(uint64_t others, const std::vector<Assigned> & assigned) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Assignment & current = *current_.load();
  auto next = std::make_unique<Assignment>();
  const auto index_of = [&](uint64_t serial) -> uint32_t {
    const auto same = [&](const NamedProgram & p) { return p.serial == serial; };
    auto at = std::find_if(next->programs.begin(), next->programs.end(), same);
    if (at == next->programs.end()) {
      const NamedProgram * found = find(serial, current);
      if (found == nullptr) return SCOPE_NONE;
      at = next->programs.insert(next->programs.end(), *found);
    }
    return static_cast<uint32_t>(at - next->programs.begin());
  };
  if (index_of(others) == SCOPE_NONE) return 0;
  for (const Assigned & a : assigned) {
    const uint32_t index = index_of(a.serial);
    if (index == SCOPE_NONE) return 0;
    const auto seq = static_cast<size_t>(a.sequence);
    if (seq >= next->of_sequence.size()) next->of_sequence.resize(seq + 1, 0);
    next->of_sequence[seq] = index;
  }
  publish(std::move(next));
  return number();
}

size_t AssignmentSlot::collect() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return collect_locked();
}

const NamedProgram * AssignmentSlot::find(uint64_t serial, const Assignment & current) const {
  if (serial == 0) return &nothing;
  const auto held = held_.find(serial);
  if (held != held_.end()) return &held->second;
  for (const NamedProgram & p : current.programs)
    if (p.serial == serial) return &p;
  return nullptr;
}

void AssignmentSlot::publish(std::unique_ptr<Assignment> next) {
  retired_.reserve(retired_.size() + 1);
  next->number = number_.load() + 1;
  number_.store(next->number, std::memory_order_release);
  retired_.emplace_back(current_.exchange(next.release()));
  collect_locked();
}

size_t AssignmentSlot::collect_locked() {
  const Assignment * pinned = pinned_.load();
  for (size_t i = retired_.size(); i-- > 0;)
    if (retired_[i].get() != pinned) retired_.erase(retired_.begin() + static_cast<ptrdiff_t>(i));
  return retired_.size();
}

}  // namespace scope
