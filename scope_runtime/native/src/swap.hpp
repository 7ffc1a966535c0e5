// What runs where, and the one atomic pointer through which it changes under a running decode.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "program.hpp"

/// A checked program on its way to a hook.
struct scope_program {
  std::shared_ptr<const scope::Program> program;
};

namespace scope {

/// A program under the serial that names it in events and spans. Null: does nothing.
struct NamedProgram {
  uint64_t serial = 0;
  std::shared_ptr<const Program> program;
};

/// Which sequence runs under which program. Never changed once it is published.
struct Assignment {
  uint64_t number = 0;                 ///< counts the hook's assignments
  std::vector<NamedProgram> programs;  /// distinct; the first is that of every sequence not named
  std::vector<uint32_t> of_sequence;   ///< index into programs; a sequence past the end is not named

  uint32_t index_of(int32_t seq) const {
    const auto i = static_cast<size_t>(seq);
    return i < of_sequence.size() ? of_sequence[i] : 0;
  }
};

/// One sequence's program, by serial; 0 is nothing.
struct Assigned {
  int32_t sequence;
  uint64_t serial;
};

/// One decode thread pins; any thread holds, installs, assigns and collects. A hazard pointer: what is pinned is never
/// freed, and the decode thread never frees, allocates or waits.
class AssignmentSlot {
 public:
  AssignmentSlot();
  ~AssignmentSlot() { delete current_.load(); }

  /// [decode] The current assignment, kept alive until the next pin or unpin.
  const Assignment & pin() {
    for (;;) {
      const Assignment * p = current_.load();
      // An exchange, not a store: some emulators (qemu 7.2, aarch64 on x86) let the load below overtake a plain
      // sequentially consistent store, and the assignment would then be freed under this decode.
      pinned_.exchange(p);
      // Published before it was replaced? Then whoever retires it sees the pin. Else take the newer one.
      if (current_.load() == p) return *p;
    }
  }
  /// [decode]
  void unpin() { pinned_.store(nullptr); }

  // [any] What follows; all of it changes nothing where it returns false or throws.

  /// Keeps a program ready to be assigned; false where the serial is not above every one before.
  bool hold(std::shared_ptr<const Program> program, uint64_t serial);
  /// Lets go of it: freed once no assignment names it. False where it is not held.
  bool release(uint64_t serial);
  /// Makes a program that of every sequence, without holding it.
  bool install(std::shared_ptr<const Program> program, uint64_t serial);
  /// Publishes an assignment; returns its number, or 0 where a serial is neither held nor in the current one.
  uint64_t assign(uint64_t others, const std::vector<Assigned> & assigned);
  /// Frees assignments that no ubatch can see; returns how many must wait.
  size_t collect();
  /// Number of the newest assignment.
  uint64_t number() const { return number_.load(std::memory_order_acquire); }
  /// Whether every ubatch that begins from here on, and the one that is open, runs under the newest.
  bool in_force() { return collect() == 0; }

 private:
  bool take_serial(uint64_t serial) const { return serial > last_serial_ && serial != UINT64_MAX; }
  const NamedProgram * find(uint64_t serial, const Assignment & current) const;
  void publish(std::unique_ptr<Assignment> next);
  size_t collect_locked();

  std::atomic<const Assignment *> current_;
  std::atomic<const Assignment *> pinned_{nullptr};
  std::atomic<uint64_t> number_{0};
  std::mutex mutex_;  ///< of the installing side: the decode thread never takes it
  std::vector<std::unique_ptr<const Assignment>> retired_;
  std::map<uint64_t, NamedProgram> held_;
  uint64_t last_serial_ = 0;
};

}  // namespace scope
