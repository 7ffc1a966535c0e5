#include "ring.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

namespace scope {

uint64_t Ring::bytes_for(uint32_t n_events) {
  uint64_t n_slots = 16;
  while (n_slots < n_events) n_slots *= 2;
  return sizeof(RingHeader) + n_slots * sizeof(scope_event);
}

void Ring::format(std::byte * block, uint64_t n_bytes) {
  std::memset(block, 0, n_bytes);
  RingHeader * h = new (block) RingHeader{};
  std::memcpy(h->magic, "SCOPERNG", sizeof h->magic);
  h->version = 1;
  h->slot_bytes = sizeof(scope_event);
  h->n_slots = (n_bytes - sizeof(RingHeader)) / sizeof(scope_event);
}

Ring::Ring(uint32_t n_events) {
  const uint64_t n_bytes = bytes_for(n_events);
  own_.reset(static_cast<std::byte *>(::operator new(n_bytes, std::align_val_t{64})));
  block_ = own_.get();
  format(block_, n_bytes);
  n_slots_ = header().n_slots;
}

Ring::Ring(std::byte * block, uint64_t n_bytes) : block_(block) {
  const bool room = n_bytes >= sizeof(RingHeader) && reinterpret_cast<uintptr_t>(block) % 64 == 0;
  n_slots_ = room ? header().n_slots : 0;
  if (n_slots_ == 0 || (n_slots_ & (n_slots_ - 1)) != 0 || n_slots_ > n_bytes / sizeof(scope_event) ||
      sizeof(RingHeader) + n_slots_ * sizeof(scope_event) != n_bytes ||
      std::memcmp(header().magic, "SCOPERNG", sizeof header().magic) != 0 || header().version != 1 ||
      header().slot_bytes != sizeof(scope_event))
    throw std::runtime_error("the event ring is none");
}

bool Ring::push(const scope_event & event) {
  RingHeader & h = header();
  const uint64_t at = h.written.load(std::memory_order_relaxed);
  if (at - h.read.load(std::memory_order_acquire) >= n_slots_) {
    h.dropped.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  slots()[at & (n_slots_ - 1)] = event;
  h.written.store(at + 1, std::memory_order_release);
  return true;
}

size_t Ring::drain(scope_event * out, size_t max) {
  RingHeader & h = header();
  const uint64_t from = h.read.load(std::memory_order_relaxed);
  const uint64_t n = std::min<uint64_t>({h.written.load(std::memory_order_acquire) - from, n_slots_, max});
  for (uint64_t i = 0; i < n; i++) out[i] = slots()[(from + i) & (n_slots_ - 1)];
  h.read.store(from + n, std::memory_order_release);
  return static_cast<size_t>(n);
}

}  // namespace scope
