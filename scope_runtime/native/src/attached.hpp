// The hook's side of the shared files: a server that knows nothing of us, controlled by a process that it never met.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "attachment.hpp"
#include "hook.hpp"
#include "shared_file.hpp"

namespace scope {

/// Applies the controller's commands, in their order, between two ubatches. A thread of its own loads programs, which
/// takes long, and applies the rest while nothing is decoded; the decode thread applies what waits when an ubatch ends.
class Attached : public Attachment {
 public:
  /// Throws std::runtime_error with a sentence.
  explicit Attached(const std::string & folder);
  ~Attached() override;

  scope_hook & hook() { return *hook_; }

  std::mutex & gate() override { return gate_; }
  void reached() override { file_.header().reached.store(1, std::memory_order_release); }
  bool recognises(const void * ubatch) override;
  void arrives(const void * ubatch) override;
  void between_ubatches() override;
  void context_gone() override;

 private:
  struct Outcome {
    int32_t code = SCOPE_OK;
    std::string sentence;
  };
  enum class Next { none, applied, heavy };

  void work();
  Next apply_next(bool heavy_too);
  Outcome apply(const scope_command & command);
  Outcome hold(uint64_t serial);
  Outcome assign(const scope_command & command);
  Outcome begin(const scope_command & command);
  Outcome end(int32_t slot);
  Outcome expect(const scope_command & command);
  bool publish_assignment();
  void expected_computed();
  void publish_slot(int32_t slot, bool with_spans);
  void publish_status();

  SharedFile file_;
  std::unique_ptr<scope_hook> hook_;
  std::mutex gate_;
  std::atomic<bool> stop_{false};

  // Under the gate:
  uint64_t next_ = 0;     ///< command
  bool loading_ = false;  ///< the thread is at a command that takes long
  bool corrupt_ = false;  ///< the queue's counters make no sense: no more commands
  uint64_t others_ = 0;
  std::vector<uint64_t> serial_of_slot_;
  std::vector<scope_slot_state> slots_;  ///< as published
  std::vector<Column> expected_;
  size_t n_matched_ = 0;
  bool recognised_ = false;
  uint64_t last_serial_ = 0;
  uint32_t n_layers_seen_ = 0;

  std::thread thread_;
};

}  // namespace scope
