#include "ring.hpp"

#include <algorithm>
#include <cstring>
#include <new>

namespace scope {

Ring::Ring(uint32_t n_events) {
  uint64_t n_slots = 16;
  while (n_slots < n_events) n_slots *= 2;
  const size_t n_bytes = sizeof(RingHeader) + n_slots * sizeof(scope_event);
  block_.reset(static_cast<std::byte *>(::operator new(n_bytes, std::align_val_t{64})));
  std::memset(block_.get(), 0, n_bytes);
  RingHeader * h = new (block_.get()) RingHeader{};
  std::memcpy(h->magic, "SCOPERNG", sizeof h->magic);
  h->version = 1;
  h->slot_bytes = sizeof(scope_event);
  h->n_slots = n_slots;
}

bool Ring::push(const scope_event & event) {
  RingHeader & h = header();
  const uint64_t at = h.written.load(std::memory_order_relaxed);
  if (at - h.read.load(std::memory_order_acquire) == h.n_slots) {
    h.dropped.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  slots()[at & (h.n_slots - 1)] = event;
  h.written.store(at + 1, std::memory_order_release);
  return true;
}

size_t Ring::drain(scope_event * out, size_t max) {
  RingHeader & h = header();
  const uint64_t from = h.read.load(std::memory_order_relaxed);
  const uint64_t n = std::min<uint64_t>(h.written.load(std::memory_order_acquire) - from, max);
  for (uint64_t i = 0; i < n; i++) out[i] = slots()[(from + i) & (h.n_slots - 1)];
  h.read.store(from + n, std::memory_order_release);
  return static_cast<size_t>(n);
}

}  // namespace scope
