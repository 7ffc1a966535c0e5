#include <stdexcept>

#include "capture.hpp"
#include "check.hpp"

namespace {

scope::Ubatch three_columns() {
  scope::Ubatch u;
  u.columns = {{11, 0, 2, false}, {12, 1, 2, true}, {13, 7, 0, true}};
  u.outputs = {1, 2};
  return u;
}

/// What a drain gives: rows and, per row, the first number of its residual.
struct Drained {
  std::vector<scope_captured_row> rows;
  std::vector<float> h;
  explicit Drained(scope::Capture & c, size_t n_embd) : rows(c.waiting()), h(c.waiting() * n_embd) {
    c.drain(rows.data(), h.data());
  }
};

}  // namespace

TEST(capture, rows_know_where_they_belong) {
  scope::Capture c;
  CHECK(!c.on());
  c.start({4, -1}, 2, 100);
  CHECK(c.on() && c.wants(-1) && c.wants(4) && !c.wants(0));
  const scope::Ubatch u = three_columns();
  float * all = c.take(4, u, 3);
  for (int i = 0; i < 6; i++) all[i] = static_cast<float>(i);
  float * outputs = c.take(-1, u, 2);  // the last block's rows: only those whose logits are wanted
  for (int i = 0; i < 4; i++) outputs[i] = static_cast<float>(10 + i);
  const Drained out(c, 2);
  CHECK_EQ(out.rows.size(), 5u);
  CHECK_EQ(out.rows[2].token, 13);
  CHECK_EQ(out.rows[2].position, 7);
  CHECK_EQ(out.rows[2].sequence, 0);
  CHECK_EQ(out.rows[3].layer, -1);
  CHECK_EQ(out.rows[3].token, 12);
  CHECK_EQ(out.h[5], 5.0f);
  CHECK_EQ(out.h[6], 10.0f);
  CHECK_EQ(c.waiting(), 0u);
}

TEST(capture, is_bounded_and_counts_what_it_loses) {
  scope::Capture c;
  c.start({0}, 1, 4);
  const scope::Ubatch u = three_columns();
  CHECK(c.take(0, u, 3) != nullptr);
  CHECK(c.take(0, u, 3) == nullptr);
  CHECK_EQ(c.lost(), 3u);
  CHECK_EQ(c.waiting(), 3u);
  Drained(c, 1);
  CHECK(c.take(0, u, 3) != nullptr);
  c.start({}, 1, 0);
  CHECK(!c.on());
  CHECK_EQ(c.waiting(), 0u);
  CHECK_EQ(c.lost(), 0u);
}

TEST(capture, rows_that_fit_nothing_are_refused) {
  scope::Capture c;
  c.start({0}, 1, 100);
  bool refused = false;
  try {
    c.take(0, three_columns(), 1);
  } catch (const std::invalid_argument &) {
    refused = true;
  }
  CHECK(refused);
  CHECK_EQ(c.waiting(), 0u);
  scope::Ubatch none = three_columns();
  none.outputs.clear();
  CHECK(c.take(0, none, 0) == nullptr);  // a prompt ubatch without outputs, at the last block
  CHECK_EQ(c.lost(), 0u);
}
