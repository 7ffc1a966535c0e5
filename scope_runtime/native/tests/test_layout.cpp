// The last test of the process: what it breaks stays broken.
#include "attach_fixture.hpp"

using namespace test;

TEST(layout, another_layout_is_noticed_and_never_trusted) {
  Engine e;
  e.prove();
  fake().change_layout();
  e.prove();
  CHECK_EQ(e.attached() & SCOPE_ATTACH_COLUMNS, 0u);
  e.install(adds(100, 1));
  scope_request_begin(e.hook, 0, 1, 1);
  // By hand it still works, one sequence at a time.
  e.columns(0, 0, 2);
  CHECK(decode(e.context, 0, 2, true) == unsteered + 100);
  scope_hook_end_ubatch(e.hook);
  CHECK(decode(e.context, 2, 3, false) == unsteered);
  CHECK_EQ(e.stats().n_unmatched, 0u);
}
