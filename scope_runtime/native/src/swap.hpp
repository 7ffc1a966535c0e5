// The one atomic pointer through which programs change under a running decode.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "program.hpp"

/// A checked program; once installed, with the serial that names it in events and spans.
struct scope_program {
  std::unique_ptr<const scope::Program> program;  ///< null: a program that does nothing
  uint64_t serial = 0;
};

namespace scope {

/// One decode thread pins; any thread installs and collects. A hazard pointer: what is pinned is never freed.
class ProgramSlot {
 public:
  ~ProgramSlot() { delete current_.load(); }

  /// [decode] The current program, kept alive until the next pin or unpin; null before the first install.
  const scope_program * pin() {
    for (;;) {
      const scope_program * p = current_.load();
      // An exchange, not a store: some emulators (qemu 7.2, aarch64 on x86) let the load below overtake a plain
      // sequentially consistent store, and the program would then be freed under this decode.
      pinned_.exchange(p);
      // Published before it was replaced? Then whoever retires it sees the pin. Else take the newer one.
      if (current_.load() == p) return p;
    }
  }
  /// [decode]
  void unpin() { pinned_.store(nullptr); }

  /// [any] Takes ownership unless it returns false (the serial was used before) or throws; then nothing changes.
  bool install(scope_program * next, uint64_t serial) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (serial == 0 || serial == UINT64_MAX || serials_.count(serial) != 0) return false;
    retired_.reserve(retired_.size() + 1);
    serials_.insert(serial);
    next->serial = serial;
    if (const scope_program * old = current_.exchange(next)) retired_.emplace_back(old);
    collect_locked();
    return true;
  }
  /// [any] Frees what no ubatch can see; returns how many must wait.
  size_t collect() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return collect_locked();
  }

 private:
  size_t collect_locked() {
    const scope_program * pinned = pinned_.load();
    for (size_t i = retired_.size(); i-- > 0;)
      if (retired_[i].get() != pinned) retired_.erase(retired_.begin() + static_cast<ptrdiff_t>(i));
    return retired_.size();
  }

  std::atomic<const scope_program *> current_{nullptr};
  std::atomic<const scope_program *> pinned_{nullptr};
  std::mutex mutex_;  ///< of the installing side: the decode thread never takes it
  std::vector<std::unique_ptr<const scope_program>> retired_;
  std::unordered_set<uint64_t> serials_;
};

}  // namespace scope
