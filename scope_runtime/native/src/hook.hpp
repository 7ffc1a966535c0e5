// The hook of one context: programs in, ubatches through, events out.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "apply.hpp"
#include "attachment.hpp"
#include "capture.hpp"
#include "columns.hpp"
#include "ring.hpp"
#include "scope_hook.h"
#include "sequences.hpp"
#include "swap.hpp"
#include "ubatch.hpp"

namespace scope {

/// Written by the decode thread, read by any.
struct Counter {
  std::atomic<uint64_t> value{0};
  void add(uint64_t n) { value.store(value.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  uint64_t get() const { return value.load(std::memory_order_relaxed); }
};

struct Stats {
  Counter n_ubatches, n_columns, n_residuals, n_unmatched, n_unsteered_columns, hook_ns;
  Counter n_swaps, swap_ns, swap_ns_max;  ///< written by whoever installs
  void note_swap(std::chrono::nanoseconds took);
};

/// Adds the time until it goes out of scope.
class Stopwatch {
 public:
  explicit Stopwatch(Counter & ns);
  ~Stopwatch();

 private:
  Counter & ns_;
  int64_t began_;
};

/// A callback that the context's owner had asked for.
struct ChainedCallback {
  void * function = nullptr;
  void * user_data = nullptr;
};

/// Node names that the callback has seen, for probing.
struct NameRecord {
  bool on = false;
  std::vector<std::string> names;
  void note(const char * name);
};

}  // namespace scope

struct scope_hook {
 public:
  scope_hook(uint32_t n_embd, uint32_t n_layer, scope::Ring ring);

  // -- programs [any]
  bool fits(const scope::Program & program) const { return program.n_embd() == n_embd && program.n_layer() == n_layer; }

  /// Publishes an assignment, timed; its number, or 0 where a serial is not to be had.
  uint64_t publish(uint64_t others, const std::vector<scope::Assigned> & assigned);

  // -- ubatches [decode]
  /// Takes the columns of the next ubatch and pins the assignment for all of it.
  void begin(bool by_hand, bool raw_embeddings = false);
  /// Whether a program of the current ubatch has anything to do at this hook point.
  bool wants(int32_t layer) const;
  /// Whether one has anything to do at all.
  bool wants_any() const;
  /// Which rows of a residual must be read. False: they fit neither the columns nor the outputs, or come out of turn.
  bool visit(int32_t layer, uint32_t n_rows, scope::Rows & out);
  /// Runs the programs on the rows that visit named; returns those that were changed.
  scope::Rows apply(int32_t layer, const scope::Rows & rows, float * h);
  /// Closes the open ubatch, if any.
  void commit();

  const uint32_t n_embd, n_layer;
  scope::AssignmentSlot slot;
  scope::Ring ring;
  scope::Sequences sequences;
  scope::Ubatch ubatch;
  scope::Stats stats;
  scope::Capture capture;
  std::atomic<uint64_t> acknowledged{0};             ///< serial
  std::atomic<uint64_t> assignment_acknowledged{0};  ///< number
  std::atomic<uint32_t> attached{0};

  // For attach.cpp:
  scope::Attachment * attachment = nullptr;
  scope::ChainedCallback chain;
  bool chained_wants = false;  ///< its answer for the node that is being computed
  scope::NameRecord record;
  std::string embedding_node;
  std::vector<scope::Column> expected;  ///< the layout proof's columns; empty: none under way
  scope::ReadColumns read;              ///< the next ubatch's columns, while they are read
  std::vector<float> rows;              ///< residuals on their way from and to the backend

 private:
  scope::Scratch scratch_;
};
