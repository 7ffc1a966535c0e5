// The four-byte state against a reference that replays the whole history in plain words.
#include "check.hpp"
#include "reference.hpp"
#include "triggers.hpp"

using namespace test;

TEST(triggers, match_a_replay_of_the_history) {
  Random random(5);
  for (int round = 0; round < 20000; round++) {
    scope_trigger t{};
    t.above = random.chance(0.7) ? random.uniform(-1, 2) : infinity;
    t.below = random.chance(0.3) ? random.uniform(-2, 0) : -infinity;
    t.hysteresis = random.chance(0.5) ? random.uniform(0, 1) : 0.0f;
    const bool gated = random.chance(0.3);  // then many values are exactly 0, and so may the bounds be
    if (gated && random.chance(0.5)) t.above = 0.0f;
    if (gated && random.chance(0.3)) t.below = 0.0f;
    t.for_tokens = random.below(5);
    t.keep_tokens = random.below(4);
    scope::TriggerState state;
    std::vector<float> values;
    for (int i = 0; i < 30; i++) {
      values.push_back(random.chance(0.1) ? std::numeric_limits<float>::quiet_NaN() : random.uniform(-3, 3));
      if (gated && random.chance(0.5)) values.back() = 0.0f;
      state = state.next(t, values.back());
      const Firing want = replay(t, values);
      CHECK_EQ(state.firing(), want.now);
      CHECK_EQ(state.ever(), want.ever);
    }
  }
}

TEST(triggers, hold_within_the_hysteresis) {
  scope_trigger t{};
  t.above = 1.0f;
  t.below = -infinity;
  t.hysteresis = 0.5f;
  scope::TriggerState s;
  const struct {
    float value;
    bool firing;
  } steps[] = {{1.0f, false}, {1.1f, true}, {0.6f, true}, {0.5f, true}, {0.4f, false}, {0.9f, false}, {1.1f, true}};
  for (const auto & step : steps) {
    s = s.next(t, step.value);
    CHECK_EQ(s.firing(), step.firing);
  }
}

TEST(triggers, end_at_the_bound_without_a_band) {
  scope_trigger t{};
  t.above = 0.0f;
  t.below = -infinity;
  scope::TriggerState s;
  for (const float value : {1.0f, 0.0f, 2.0f, 0.0f, 0.0f}) {
    s = s.next(t, value);
    CHECK_EQ(s.firing(), value > 0.0f);
  }
}

TEST(triggers, wait_and_keep) {
  scope_trigger t{};
  t.above = 0.0f;
  t.below = -infinity;
  t.for_tokens = 3;
  t.keep_tokens = 2;
  scope::TriggerState s;
  const char * const want =
      "..F"
      "FF."
      "..FFF."
      "..F";
  const float values[] = {1, 1, 1, -1, -1, -1, 1, 1, 1, -1, -1, -1, 1, 1, 1};
  for (size_t i = 0; i < std::size(values); i++) {
    s = s.next(t, values[i]);
    CHECK_EQ(s.firing(), want[i] == 'F');
  }
}
