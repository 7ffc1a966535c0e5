// Every sequence of a context: its log, its request, and how both follow what happens to the KV.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "log.hpp"
#include "requests.hpp"
#include "ring.hpp"
#include "swap.hpp"
#include "ubatch.hpp"

namespace scope {

constexpr int32_t max_sequences = 4096;
constexpr uint64_t unknown_serial = UINT64_MAX;

/// What must outlive a program for its entries to be summed up: it may be freed long before the request ends.
struct KnownProgram {
  struct Alert {
    uint32_t rule, trigger;
    int32_t layer;
    bool aborts;
  };
  uint64_t serial = 0;
  bool used = false;
  bool excess_aborts = false;  ///< what the dose limit does
  std::vector<Alert> alerts;
};

struct Sequence {
  SequenceLog log;
  uint64_t n_stray = 0;  ///< columns computed while no request was open
  std::unique_ptr<Request> request;
};

class Sequences {
 public:
  explicit Sequences(Ring & ring);

  // -- ubatches
  /// Tells each column whether it is steered, under which program and from which states it starts; publishes the
  /// events it confirms.
  void begin(Ubatch & ubatch, const Assignment & assignment);
  void commit(Ubatch & ubatch);

  // -- requests; false where the sequence is not in the state for it
  bool request_begin(int32_t seq, uint64_t id, int32_t n_prompt);
  bool request_end(int32_t seq);
  bool request_status(int32_t seq, scope_request_state & out) const;

  // -- memory
  void clear();
  void remove(int32_t seq, int32_t p0, int32_t p1);
  void copy(int32_t from, int32_t to, int32_t p0, int32_t p1);
  void keep(int32_t seq);
  void shift(int32_t seq, int32_t p0, int32_t p1, int32_t delta);
  void divide(int32_t seq, int32_t p0, int32_t p1, int32_t divisor);
  /// Positions [p0, p1) come from a saved state, and nothing else is left of the sequence.
  void restored(int32_t seq, int32_t p0, int32_t p1);
  /// The same for every sequence that has an entry.
  void restored_all(int32_t n_positions);

  // -- reading
  const Sequence * look(int32_t seq) const { return find(seq); }
  size_t spans(int32_t seq, scope_span * out, size_t max) const;
  size_t measured(int32_t seq, int32_t position, float * activation, float * dose, uint8_t * fired, size_t max) const;

 private:
  static constexpr uint32_t no_program = 0, unknown_program = 1;

  Sequence * find(int32_t seq) const;
  Sequence & get(int32_t seq);
  uint32_t know(const Program * program, uint64_t serial, const Ubatch & ubatch);
  void forget_programs(const Ubatch & ubatch);
  uint32_t lane_for(Ubatch & ubatch, const Assignment & assignment, int32_t seq);
  void find_conflicts(Ubatch & ubatch, const Assignment & assignment);
  bool is_conflict(uint32_t column) const;
  void begin_sequence(Sequence & sequence, Ubatch & ubatch, uint32_t column);
  void confirm(Request & request, int32_t before_position);
  void notice(Request & request, Ubatch & ubatch, uint32_t column);
  void note_alert(Request & request, const KnownProgram & program, const KnownProgram::Alert & alert, int32_t seq,
                  int32_t position, const RuleMeasure & measure, bool firing);
  void recall(Request & request, int32_t seq, const SequenceLog & log);
  void remove(Sequence & sequence, int32_t p0, int32_t p1);
  void publish_summary(int32_t seq, const Request & request, const ProgramTotals & totals);

  Ring & ring_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<KnownProgram> programs_;
  size_t forget_at_ = 64;
  uint32_t n_requests_ = 0;
  std::vector<uint32_t> lane_of_program_;  ///< scratch of begin: by index in the assignment
  std::vector<uint32_t> conflicts_;        ///< scratch of begin: columns, ascending
  std::vector<uint32_t> last_column_;      ///< scratch of begin: by sequence, its latest column in the ubatch
};

}  // namespace scope
