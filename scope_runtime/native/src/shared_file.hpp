// The control file: its layout, its mapping, and how one side publishes what the other reads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <type_traits>

#include "ring.hpp"
#include "scope_shared.h"

namespace scope {

constexpr uint32_t max_commands = 256;  ///< a power of two

/// A record that one side writes and the other copies whole: a version that is odd while it changes, and words.
template <typename T>
class Published {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 8 == 0);

 public:
  void write(const T & value) {
    uint64_t words[n_words];
    __builtin_memcpy(words, &value, sizeof(T));
    const uint64_t v = version_.load(std::memory_order_relaxed);
    version_.store(v + 1, std::memory_order_relaxed);
    // Each after the version was made odd: a reader that sees one of them sees that too.
    for (size_t i = 0; i < n_words; i++) words_[i].store(words[i], std::memory_order_release);
    version_.store(v + 2, std::memory_order_release);
  }
  /// False where it never comes to rest: the writer died within.
  bool read(T & out) const;

 private:
  static constexpr size_t n_words = sizeof(T) / 8;
  std::atomic<uint64_t> version_;
  std::atomic<uint64_t> words_[n_words];
};

struct SharedCommand {
  scope_command command;
  // Written by the hook before `applied` passes the command:
  int32_t code;
  uint32_t reserved;
  char sentence[256];
};

/// The start of the file. All of it is zero before the controller writes; magic is written last.
struct SharedHeader {
  char magic[8];  ///< "SCOPESHM"
  uint32_t version, abi_version;
  uint64_t total_bytes;
  uint32_t n_embd, n_layer;
  uint64_t off_ring, ring_bytes;
  alignas(64) std::atomic<uint64_t> written;  ///< by the controller: commands
  alignas(64) std::atomic<uint64_t> applied;  ///< by the hook
  alignas(64) std::atomic<uint64_t> reached;  ///< by the hook: llama.cpp's calls come to it
  Published<scope_server_status> status;
  Published<scope_slot_state> slots[SCOPE_MAX_SLOTS];
  SharedCommand commands[max_commands];
};

/// FOLDER/control, mapped; a lock file held for as long as this lives.
class SharedFile {
 public:
  /// Makes a new file. Throws std::runtime_error with one sentence.
  static SharedFile create(const std::string & folder, uint32_t n_embd, uint32_t n_layer, uint32_t ring_events);
  /// Maps one that is there, after checking all of its numbers. `lock`: name of the lock file to hold.
  static SharedFile open(const std::string & folder, const char * lock);
  SharedFile(SharedFile && from) noexcept;
  ~SharedFile();

  SharedHeader & header() const { return *static_cast<SharedHeader *>(memory_); }
  Ring ring() const;
  const std::string & folder() const { return folder_; }

 private:
  SharedFile(std::string folder, const char * lock);
  void map(int fd, size_t n_bytes);

  std::string folder_;
  void * memory_ = nullptr;
  size_t n_bytes_ = 0;
  int lock_ = -1;
};

/// Whether a process holds the lock file.
bool is_locked(const std::string & path);
/// Wakes whoever waits for a counter to change; waits for it to be other than `seen`.
void wake(std::atomic<uint64_t> & counter);
void wait_change(const std::atomic<uint64_t> & counter, uint64_t seen, int32_t timeout_ms);

template <typename T>
bool Published<T>::read(T & out) const {
  uint64_t words[n_words];
  for (int attempt = 0; attempt < 20000; attempt++) {
    // A writer that was interrupted within has to be let run: two seconds in all.
    if (attempt > 1000) std::this_thread::sleep_for(std::chrono::microseconds(100));
    const uint64_t before = version_.load(std::memory_order_acquire);
    if (before % 2 != 0) continue;
    for (size_t i = 0; i < n_words; i++) words[i] = words_[i].load(std::memory_order_acquire);
    if (version_.load(std::memory_order_relaxed) != before) continue;
    __builtin_memcpy(&out, words, sizeof(T));
    return true;
  }
  return false;
}

}  // namespace scope
