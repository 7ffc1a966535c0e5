// The checked program: scope_program.h's blob, copied, with every index proved and the lookups that the hook needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "coarse.hpp"
#include "scope_program.h"

namespace scope {

/// A blob or an argument that is not what it should be; the message is one sentence for a person.
struct InvalidProgram : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A read-only table inside the blob.
template <typename T>
struct Table {
  const T * data = nullptr;
  uint32_t size = 0;

  const T & operator[](uint32_t i) const { return data[i]; }
  const T * begin() const { return data; }
  const T * end() const { return data + size; }
};

/// Deltas of one rule at one point: they are summed before their dose is taken.
struct DeltaGroup {
  uint32_t rule;
  uint32_t first_delta, n_deltas;
};

/// What the hook looks up at a hook point, worked out once at load.
struct PointPlan {
  std::vector<DeltaGroup> groups;
  std::vector<uint32_t> triggers;  ///< evaluated here, conditions before the alerts that depend on them
  std::vector<uint32_t> rules;     ///< rules that act or watch here: if none is in scope, a column need not be read
  bool always = false;             ///< a condition is watched here: every column is read
};

/// Who needs a feature's activation at a column.
struct FeaturePlan {
  std::vector<uint32_t> rules;  ///< needed where one of these is in scope
  bool always = false;          ///< watched by a condition, whose count must follow every token
};

class Program {
 public:
  /// Throws InvalidProgram; never trusts a count, an offset or a number in the blob.
  static std::unique_ptr<Program> load(const void * data, size_t n_bytes);

  uint32_t n_embd() const { return header_.n_embd; }
  uint32_t n_layer() const { return header_.n_layer; }
  uint32_t on_excess() const { return header_.on_excess; }
  float dose_max() const { return header_.dose_max; }

  Table<scope_rule> rules;
  Table<scope_point> points;
  Table<scope_feature> features;
  Table<scope_trigger> triggers;
  Table<uint32_t> trigger_features;
  Table<scope_delta_op> deltas;
  Table<scope_encoder> encoders;

  std::vector<CoarseEncoder> coarse_encoders;  ///< of each encoder
  std::vector<PointPlan> point_plans;
  std::vector<FeaturePlan> feature_plans;
  std::vector<std::vector<uint32_t>> alerts_of_trigger;  ///< alert rules that a trigger belongs to

  /// Floats at a checked offset.
  const float * row(uint64_t offset) const { return reinterpret_cast<const float *>(bytes_.get() + offset); }
  /// Index of the hook point at `layer`, or SCOPE_NONE.
  uint32_t point_at(int32_t layer) const {
    return layer < -1 || layer >= static_cast<int32_t>(header_.n_layer)
               ? SCOPE_NONE
               : point_of_layer_[static_cast<size_t>(layer + 1)];
  }

 private:
  struct AlignedFree {
    void operator()(std::byte * p) const { ::operator delete(p, std::align_val_t{64}); }
  };

  Program() = default;
  void read_header(size_t n_bytes);
  void find_tables();
  void check_rows(const char * what, uint32_t index, uint64_t offset, uint64_t n_rows) const;
  void check_points();
  void check_features();
  void check_encoders();
  void check_rules();
  void check_triggers();
  void check_deltas();
  void plan();
  void plan_triggers();

  std::unique_ptr<std::byte, AlignedFree> bytes_;
  scope_program_header header_{};
  std::vector<uint32_t> point_of_layer_;    ///< [layer + 1]
  std::vector<uint32_t> point_of_feature_;  ///< SCOPE_NONE until a point claims it
};

}  // namespace scope
