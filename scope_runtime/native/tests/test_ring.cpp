#include <thread>

#include "check.hpp"
#include "ring.hpp"

TEST(ring, keeps_order_and_counts_drops) {
  scope::Ring ring(16);
  scope_event e{};
  for (uint64_t i = 0; i < 20; i++) {
    e.request_id = i;
    CHECK_EQ(ring.push(e), i < 16);
  }
  CHECK_EQ(ring.dropped(), 4u);
  scope_event out[32];
  CHECK_EQ(ring.drain(out, 5), 5u);
  CHECK_EQ(out[4].request_id, 4u);
  e.request_id = 100;
  CHECK(ring.push(e));
  CHECK_EQ(ring.drain(out, 32), 12u);
  CHECK_EQ(out[10].request_id, 15u);
  CHECK_EQ(out[11].request_id, 100u);
  CHECK_EQ(ring.drain(out, 32), 0u);
}

TEST(ring, has_room_for_what_was_asked) {
  scope::Ring ring(100);
  scope_event e{};
  for (int i = 0; i < 100; i++) CHECK(ring.push(e));
}

TEST(ring, works_between_two_threads) {
  constexpr uint64_t n = 200000;
  scope::Ring ring(64);
  std::thread producer([&] {
    scope_event e{};
    for (uint64_t i = 0; i < n; i++) {
      e.request_id = i;
      e.serial = ~i;
      ring.push(e);
      if (i % 64 == 0) std::this_thread::yield();
    }
  });
  uint64_t n_seen = 0, next = 0;
  bool sound = true;
  scope_event out[16];
  while (n_seen + ring.dropped() < n) {
    const size_t got = ring.drain(out, 16);
    for (size_t i = 0; i < got; i++) {
      sound = sound && out[i].request_id >= next && out[i].serial == ~out[i].request_id;
      next = out[i].request_id + 1;
    }
    n_seen += got;
    if (got == 0) std::this_thread::yield();
  }
  producer.join();
  n_seen += ring.drain(out, 16);
  CHECK(sound);
  CHECK_EQ(n_seen + ring.dropped(), n);
}
