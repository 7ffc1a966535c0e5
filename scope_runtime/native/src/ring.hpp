// Events on their way out: one producer (the decode thread), one consumer, no locks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "scope_hook.h"

namespace scope {

/// Head of one flat block of memory, slots behind it. Nothing in it is a pointer: the block can lie in shared memory.
struct RingHeader {
  char magic[8];  ///< "SCOPERNG"
  uint32_t version;
  uint32_t slot_bytes;
  uint64_t n_slots;                           ///< a power of two
  alignas(64) std::atomic<uint64_t> written;  ///< by the producer
  alignas(64) std::atomic<uint64_t> read;     ///< by the consumer
  alignas(64) std::atomic<uint64_t> dropped;  ///< by the producer: events that found no room
};
static_assert(std::atomic<uint64_t>::is_always_lock_free, "the ring's counters must work between processes");

class Ring {
 public:
  /// Room for at least n_events; throws std::bad_alloc.
  explicit Ring(uint32_t n_events);
  /// On a formatted block of somebody else's; throws std::runtime_error where its numbers do not fit its size.
  Ring(std::byte * block, uint64_t n_bytes);

  static uint64_t bytes_for(uint32_t n_events);
  /// Makes an empty ring of a block at a multiple of 64.
  static void format(std::byte * block, uint64_t n_bytes);

  /// [producer] False, and counted, when there is no room.
  bool push(const scope_event & event);
  /// [consumer] Oldest first.
  size_t drain(scope_event * out, size_t max);
  uint64_t dropped() const { return header().dropped.load(std::memory_order_relaxed); }

 private:
  struct AlignedFree {
    void operator()(std::byte * p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  RingHeader & header() const { return *reinterpret_cast<RingHeader *>(block_); }
  scope_event * slots() const { return reinterpret_cast<scope_event *>(block_ + sizeof(RingHeader)); }

  std::unique_ptr<std::byte, AlignedFree> own_;
  std::byte * block_;
  uint64_t n_slots_;  ///< not asked for again: the block may be another process's too
};

}  // namespace scope
