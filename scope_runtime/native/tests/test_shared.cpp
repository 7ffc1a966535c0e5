// A hook controlled from outside, through the files, with the fake llama.cpp as the server.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "attach_fixture.hpp"
#include "attached.hpp"

using namespace test;

namespace {

/// A private folder, gone with its test.
struct Folder {
  Folder() {
    char name[] = "/tmp/scope-shared-XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string path;
};

struct Outcome {
  int code;
  std::string sentence;
};

struct Controller {
  explicit Controller(const std::string & folder_) : folder(folder_) {
    CHECK_EQ(scope_control_create(folder.c_str(), fake_n_embd, fake_n_layer, 64, &control, nullptr, 0), SCOPE_OK);
  }
  ~Controller() { scope_control_close(control); }

  Outcome call(const scope_command & command) {
    uint64_t number = 0;
    char err[300] = "";
    if (const int code = scope_control_send(control, &command, &number, err, sizeof err); code < 0) return {code, err};
    int32_t code = 0;
    while (scope_control_wait(control, number, 1000, &code, err, sizeof err) == 0) {
    }
    return {code, err};
  }
  Outcome command(uint32_t kind, int32_t slot = 0, uint64_t program = 0, uint64_t request = 0) {
    scope_command c{};
    c.kind = kind;
    c.slot = slot;
    c.serial = program;
    c.request_id = request;
    return call(c);
  }
  Outcome hold(const Bytes & blob, uint64_t as) {
    const std::string path = folder + "/program-" + std::to_string(as) + ".bin";
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char *>(blob.data()), static_cast<std::streamsize>(blob.size()));
    chmod(path.c_str(), 0600);
    return command(SCOPE_COMMAND_HOLD, 0, as);
  }
  Outcome assign(const std::vector<uint64_t> & serials, uint64_t others = 0) {
    scope_command c{};
    c.kind = SCOPE_COMMAND_ASSIGN;
    c.serial = others;
    for (const uint64_t s : serials) c.assigned[c.n] = {static_cast<int32_t>(c.n), 0, s}, c.n++;
    return call(c);
  }
  Outcome expect(const std::vector<int32_t> & tokens, int32_t slot = 0) {
    scope_command c{};
    c.kind = SCOPE_COMMAND_EXPECT;
    c.slot = slot;
    for (const int32_t t : tokens) c.tokens[c.n++] = t;
    return call(c);
  }
  scope_slot_state slot(int32_t i) {
    scope_slot_state out{};
    CHECK_EQ(scope_control_slot(control, i, &out), SCOPE_OK);
    return out;
  }
  scope_server_status status() {
    scope_server_status out{};
    CHECK_EQ(scope_control_status(control, &out), SCOPE_OK);
    return out;
  }
  std::vector<scope_event> drain() {
    std::vector<scope_event> out(256);
    out.resize(scope_control_drain(control, out.data(), out.size()));
    return out;
  }

  std::string folder;
  scope_control * control = nullptr;
};

/// A context of a server that has not heard of us.
struct ServerContext {
  ServerContext() : context(fake().context_new(nullptr, nullptr)) {}
  ~ServerContext() { fake().context_free(context); }
  ServerContext(const ServerContext &) = delete;

  float decode(int32_t from, int32_t to, int32_t seq = 0) { return test::decode(context, from, to, true, seq); }
  /// Tokens at positions [0, n) in ubatches of these sizes; the last is output.
  void prompt(const std::vector<int32_t> & tokens, const std::vector<size_t> & sizes, int32_t seq = 0) {
    size_t from = 0;
    for (const size_t n : sizes) {
      std::vector<int32_t> token, pos, sequence;
      std::vector<int8_t> output;
      for (size_t i = from; i < from + n; i++) {
        token.push_back(tokens[i]);
        pos.push_back(static_cast<int32_t>(i));
        sequence.push_back(seq);
        output.push_back(i + 1 == tokens.size() ? 1 : 0);
      }
      const FakeBatch b{static_cast<uint32_t>(n), token.data(), pos.data(), sequence.data(), output.data()};
      float out = 0;
      fake().decode(context, &b, true, &out);
      from += n;
    }
  }

  void * context;
};

const std::vector<int32_t> known = {3, 1, 4, 1, 5};

/// Controller, hook and server, the server's context proved.
struct Attachment {
  Attachment() : controller(folder.path), attached(folder.path) {
    CHECK_EQ(scope_attach(library(), library(), nullptr, 0), SCOPE_OK);
    CHECK_EQ(controller.expect(known).code, SCOPE_OK);
    server.prompt(known, {known.size()});
    CHECK_EQ(controller.status().state, uint32_t{SCOPE_SERVER_RECOGNISED});
  }

  Folder folder;
  Controller controller;
  scope::Attached attached;
  ServerContext server;
};

std::string refused(const std::string & folder) {
  char err[300] = "";
  scope_control * control = nullptr;
  if (scope_control_open(folder.c_str(), &control, err, sizeof err) != SCOPE_OK) return err;
  scope_control_close(control);
  return "";
}

}  // namespace

TEST(shared, damaged_files_are_refused_in_words) {
  Folder folder;
  {
    const Controller made(folder.path);
  }
  CHECK(refused(folder.path).empty());
  const std::string path = folder.path + "/control";
  const auto whole = std::filesystem::file_size(path);
  const auto with = [&](size_t at, uint8_t value) {
    std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
    char before = 0;
    f.seekg(static_cast<std::streamoff>(at)).read(&before, 1);
    f.seekp(static_cast<std::streamoff>(at)).put(static_cast<char>(value)).flush();
    const std::string said = refused(folder.path);
    f.seekp(static_cast<std::streamoff>(at)).put(before).flush();
    return said;
  };
  CHECK(with(0, 'X').find("none, or not complete") != std::string::npos);
  CHECK(with(8, 77).find("another version") != std::string::npos);
  CHECK(with(12, 77).find("another version") != std::string::npos);
  for (size_t at = offsetof(scope::SharedHeader, total_bytes); at < offsetof(scope::SharedHeader, total_bytes) + 8;
       at++)
    CHECK(with(at, 0x5a).find("sizes") != std::string::npos);
  for (size_t at = offsetof(scope::SharedHeader, off_ring); at < offsetof(scope::SharedHeader, off_ring) + 16; at++)
    CHECK(with(at, 0x5a).find("sizes") != std::string::npos);
  CHECK(with(offsetof(scope::SharedHeader, n_embd) + 3, 0x7f).find("absurd") != std::string::npos);
  for (size_t at = sizeof(scope::SharedHeader); at < sizeof(scope::SharedHeader) + 24; at++)
    CHECK(with(at, 0xa5).find("ring") != std::string::npos);
  CHECK(refused(folder.path).empty());
  for (const auto size : {uintmax_t{0}, uintmax_t{100}, whole / 2, whole - 1}) {
    std::filesystem::resize_file(path, size);
    CHECK(refused(folder.path) != "");
    std::filesystem::resize_file(path, whole);
  }
  chmod(path.c_str(), 0644);
  CHECK(refused(folder.path).find("this user alone") != std::string::npos);
  std::filesystem::rename(path, path + "2");
  std::filesystem::create_symlink(path + "2", path);
  CHECK(refused(folder.path).find("cannot open") != std::string::npos);
}

TEST(shared, only_the_context_that_gets_the_known_tokens_is_taken) {
  Folder folder;
  Controller controller(folder.path);
  CHECK_EQ(scope_control_alive(controller.control), 0);
  {
    scope::Attached attached(folder.path);
    CHECK_EQ(scope_control_alive(controller.control), 1);
    CHECK_EQ(scope_attach(library(), library(), nullptr, 0), SCOPE_OK);
    CHECK_EQ(controller.status().state, uint32_t{SCOPE_SERVER_LOADED});
    ServerContext draft, server;
    server.decode(0, 2);  // a warm-up
    CHECK_EQ(controller.command(SCOPE_COMMAND_BEGIN, 0, 0).code, SCOPE_E_STATE);
    CHECK_EQ(controller.expect(known).code, SCOPE_OK);
    draft.prompt({3, 1, 4, 1, 6}, {5});
    draft.prompt({3, 1}, {2});
    CHECK_EQ(controller.status().state, uint32_t{SCOPE_SERVER_REACHED});
    server.prompt(known, {3, 2});  // in two ubatches
    scope_server_status status = controller.status();
    CHECK_EQ(status.state, uint32_t{SCOPE_SERVER_RECOGNISED});
    CHECK_EQ(status.n_layers_seen, fake_n_layer);
    CHECK(std::string(status.embedding_node) == "embd");
    CHECK_EQ(status.attached, SCOPE_ATTACH_CALLBACK | SCOPE_ATTACH_COLUMNS);

    CHECK_EQ(controller.hold(adds(100, 1), 1).code, SCOPE_OK);
    CHECK_EQ(controller.command(SCOPE_COMMAND_BEGIN, 0, 1, 9).code, SCOPE_OK);
    const uint64_t n_ubatches = controller.status().stats.n_ubatches;
    CHECK(draft.decode(0, 3) == unsteered);
    CHECK(server.decode(0, 3) == unsteered + 100);
    CHECK(draft.decode(3, 4) == unsteered);
    CHECK_EQ(controller.status().stats.n_ubatches, n_ubatches + 1);
  }
  CHECK_EQ(scope_control_alive(controller.control), 0);
  bool thrown = false;
  try {
    const scope::Attached next(folder.path);
  } catch (const std::runtime_error &) {
    thrown = true;  // a folder is for one server
  }
  CHECK(thrown);
}

TEST(shared, a_context_that_goes_is_no_longer_proved) {
  Attachment a;
  {
    ServerContext other;
    other.prompt(known, {known.size()});
  }
  CHECK_EQ(a.controller.status().state, uint32_t{SCOPE_SERVER_RECOGNISED});
  fake().context_free(a.server.context);
  a.server.context = fake().context_new(nullptr, nullptr);
  CHECK_EQ(a.controller.status().state, uint32_t{SCOPE_SERVER_REACHED});
  CHECK_EQ(a.controller.command(SCOPE_COMMAND_BEGIN, 0, 0).code, SCOPE_E_STATE);
  CHECK_EQ(a.controller.expect(known).code, SCOPE_OK);
  a.server.prompt(known, {known.size()});
  CHECK_EQ(a.controller.command(SCOPE_COMMAND_BEGIN, 0, 0).code, SCOPE_OK);
}

TEST(shared, a_request_from_begin_to_end) {
  Attachment a;
  Controller & c = a.controller;
  CHECK_EQ(c.hold(adds(100, 1), 1).code, SCOPE_OK);
  CHECK_EQ(c.hold(adds(7, 0), 2).code, SCOPE_OK);
  CHECK_EQ(c.command(SCOPE_COMMAND_BEGIN, 1, 1, 42).code, SCOPE_OK);
  CHECK_EQ(c.slot(1).answer_start, -1);
  CHECK_EQ(c.slot(1).first_serial, 0u);
  CHECK(a.server.decode(0, 4, 1) == unsteered + 100);
  scope_slot_state s = c.slot(1);
  CHECK_EQ(s.open, 1u);
  CHECK_EQ(s.request_id, 42u);
  CHECK_EQ(s.answer_start, 3);  // the first whose logits were asked for
  CHECK_EQ(s.n_columns, 4u);
  CHECK_EQ(s.last_position, 3);
  CHECK_EQ(c.assign({0, 2}).code, SCOPE_OK);
  CHECK(a.server.decode(4, 5, 1) == unsteered + 7);
  CHECK_EQ(c.slot(1).serial, 2u);
  CHECK_EQ(c.slot(1).first_serial, 1u);
  CHECK_EQ(c.command(SCOPE_COMMAND_END, 1).code, SCOPE_OK);
  s = c.slot(1);
  CHECK_EQ(s.open, 0u);
  CHECK_EQ(s.n_columns, 5u);
  CHECK_EQ(s.n_unsteered, 0u);
  CHECK_EQ(s.n_spans, 2u);
  CHECK_EQ(s.spans[0].serial, 1u);
  CHECK_EQ(s.spans[1].from_position, 4);
  CHECK_EQ(s.spans[1].serial, 2u);
  const std::vector<scope_event> events = c.drain();
  CHECK_EQ(events.size(), 3u);  // a summary for each program, and the end
  CHECK_EQ(events.back().kind, uint32_t{SCOPE_EVENT_REQUEST_END});
  CHECK_EQ(events.back().request_id, 42u);
  CHECK(a.server.decode(5, 7, 1) == unsteered);
  CHECK_EQ(c.slot(1).n_stray, 2u);
  CHECK_EQ(c.command(SCOPE_COMMAND_END, 1).code, SCOPE_E_STATE);
  // The server's own changes to its memory are followed: it was found when the server waited for outputs.
  CHECK(a.attached.hook().attached.load() & SCOPE_ATTACH_COLUMNS);
  using Remove = bool(void *, int32_t, int32_t, int32_t);
  auto * const remove = reinterpret_cast<Remove *>(dlsym(RTLD_DEFAULT, "llama_memory_seq_rm"));
  CHECK(remove(memory_of(a.server.context), 1, 3, -1));
  CHECK_EQ(c.command(SCOPE_COMMAND_BEGIN, 1, 2, 43).code, SCOPE_OK);
  CHECK_EQ(c.slot(1).last_position, 2);
  CHECK(c.status().attached & SCOPE_ATTACH_MEMORY);
}

TEST(shared, a_slot_says_that_its_generation_must_end) {
  Attachment a;
  Spec s;
  s.n_embd = fake_n_embd;
  s.n_layer = fake_n_layer;
  const uint32_t f = s.add_feature(1, Row(s.n_embd, 1.0f / static_cast<float>(s.n_embd)));
  const uint32_t alert = s.add_rule(SCOPE_OP_ALERT);
  s.rules[alert].alert = s.add_trigger({f}, 0, 1.0f);
  s.rules[alert].actions = SCOPE_ACTION_ABORT;
  CHECK_EQ(a.controller.hold(s.blob(), 1).code, SCOPE_OK);
  CHECK_EQ(a.controller.command(SCOPE_COMMAND_BEGIN, 2, 1, 5).code, SCOPE_OK);
  CHECK_EQ(a.controller.slot(2).abort, 0u);
  a.server.decode(0, 2, 2);
  const scope_slot_state state = a.controller.slot(2);
  CHECK_EQ(state.abort, 1u);
  CHECK_EQ(state.abort_rule, alert);
  CHECK_EQ(state.abort_serial, 1u);
  CHECK_EQ(state.abort_position, 0);
}

TEST(shared, bad_programs_and_commands_are_refused_and_nothing_changes) {
  Attachment a;
  Controller & c = a.controller;
  CHECK_EQ(c.hold(adds(100, 1), 1).code, SCOPE_OK);
  CHECK_EQ(c.assign({1}, 1).code, SCOPE_OK);
  Bytes bad = adds(5, 1);
  bad.back() ^= 1;
  CHECK_EQ(c.hold(bad, 2).code, SCOPE_E_INVALID);
  bad.resize(bad.size() / 2);
  CHECK_EQ(c.hold(bad, 3).code, SCOPE_E_INVALID);
  Spec other;
  other.n_embd = fake_n_embd + 1;
  CHECK_EQ(c.hold(other.blob(), 4).code, SCOPE_E_MISMATCH);
  CHECK_EQ(c.hold(adds(1, 1), 1).code, SCOPE_E_STATE);
  CHECK_EQ(c.command(SCOPE_COMMAND_HOLD, 0, 9).code, SCOPE_E_INVALID);  // no file
  CHECK_EQ(c.command(SCOPE_COMMAND_RELEASE, 0, 9).code, SCOPE_E_STATE);
  CHECK_EQ(c.assign({9}).code, SCOPE_E_STATE);
  CHECK_EQ(c.command(SCOPE_COMMAND_BEGIN, 0, 9).code, SCOPE_E_STATE);
  CHECK_EQ(c.command(SCOPE_COMMAND_BEGIN, -1, 1).code, SCOPE_E_INVALID);
  CHECK_EQ(c.command(SCOPE_COMMAND_END, 1 << 20).code, SCOPE_E_STATE);
  CHECK_EQ(c.command(77).code, SCOPE_E_INVALID);
  scope_command many{};
  many.kind = SCOPE_COMMAND_ASSIGN;
  many.n = 1u << 30;
  CHECK_EQ(c.call(many).code, SCOPE_E_INVALID);
  many.kind = SCOPE_COMMAND_EXPECT;
  CHECK_EQ(c.call(many).code, SCOPE_E_INVALID);
  CHECK_EQ(c.slot(0).serial, 1u);
  CHECK_EQ(c.command(SCOPE_COMMAND_BEGIN, 0, 1).code, SCOPE_OK);
  CHECK(a.server.decode(0, 2) == unsteered + 100);
}

TEST(shared, random_commands_never_hurt_the_server) {
  Attachment a;
  Random random(5);
  CHECK_EQ(a.controller.hold(adds(100, 1), 1).code, SCOPE_OK);
  int32_t position = 0;
  for (int i = 0; i < 2000; i++) {
    scope_command c{};
    c.kind = random.below(9);
    c.slot = static_cast<int32_t>(random.below(4)) - 1;
    c.serial = random.below(4);
    c.request_id = random.below(1000);
    c.n_prompt = static_cast<int32_t>(random.below(5)) - 1;
    c.n = random.chance(0.9) ? random.below(4) : random.below(UINT32_MAX);
    for (auto & pair : c.assigned) pair = {static_cast<int32_t>(random.below(6)) - 1, 0, random.below(3)};
    a.controller.call(c);
    if (i % 5 == 0) a.server.decode(position, position + 1, 0), position++;
  }
  a.controller.drain();
  CHECK_EQ(a.controller.status().stats.n_unmatched, 0u);
}

TEST(shared, a_damaged_queue_ends_the_commands_and_not_the_steering) {
  Attachment a;
  CHECK_EQ(a.controller.hold(adds(100, 1), 1).code, SCOPE_OK);
  CHECK_EQ(a.controller.command(SCOPE_COMMAND_BEGIN, 0, 1).code, SCOPE_OK);
  const int fd = ::open((a.folder.path + "/control").c_str(), O_RDWR);
  const uint64_t absurd = 1u << 20;
  CHECK_EQ(::pwrite(fd, &absurd, sizeof absurd, offsetof(scope::SharedHeader, written)), 8);
  ::close(fd);
  CHECK(a.server.decode(0, 2) == unsteered + 100);
  CHECK(a.server.decode(2, 3) == unsteered + 100);
  CHECK(std::string(a.controller.status().sentence).find("damaged") != std::string::npos);
}

TEST(shared, requests_and_swaps_beside_a_running_decode) {
  constexpr int n_rounds = 300;
  Attachment a;
  Controller & c = a.controller;
  std::atomic<bool> done{false};
  std::atomic<uint64_t> n_wrong{0}, n_decodes{0};
  std::thread server([&] {
    int32_t position = 0;
    while (!done.load()) {
      const float out = a.server.decode(position, position + 1, 0);
      const float added = out - unsteered;
      // Nothing, or one program whole.
      n_wrong += added == 0.0f || (added >= 1.0f && added <= n_rounds + 1.0f) ? 0 : 1;
      n_decodes++;
      if (++position == 200) {
        using Clear = void(void *, bool);
        reinterpret_cast<Clear *>(dlsym(RTLD_DEFAULT, "llama_memory_clear"))(memory_of(a.server.context), true);
        position = 0;
      }
    }
  });
  for (int round = 1; round <= n_rounds; round++) {
    const auto serial = static_cast<uint64_t>(round);
    CHECK_EQ(c.hold(adds(static_cast<float>(round), 1), serial).code, SCOPE_OK);
    CHECK_EQ(c.command(SCOPE_COMMAND_BEGIN, 0, serial, serial).code, SCOPE_OK);
    const uint64_t before = n_decodes.load();
    while (n_decodes.load() < before + 2) std::this_thread::yield();
    CHECK(c.slot(0).n_columns >= 1);
    CHECK_EQ(c.command(SCOPE_COMMAND_END, 0).code, SCOPE_OK);
    const scope_slot_state end = c.slot(0);
    CHECK_EQ(end.n_unsteered, 0u);
    bool ended = false;
    for (const scope_event & e : c.drain())
      ended = ended || (e.kind == SCOPE_EVENT_REQUEST_END && e.request_id == serial);
    CHECK(ended);
    if (round > 1) CHECK_EQ(c.command(SCOPE_COMMAND_RELEASE, 0, serial - 1).code, SCOPE_OK);
  }
  done = true;
  server.join();
  CHECK_EQ(n_wrong.load(), 0u);
}
