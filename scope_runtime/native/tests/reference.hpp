// The program's meaning once more, written for reading and not for speed: F64, no state carried between tokens.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "spec.hpp"

namespace test {

struct Firing {
  bool now = false, ever = false;
};

/// Says from all values so far whether a trigger fires at the last one.
Firing replay(const scope_trigger & t, const std::vector<float> & values);

struct RefColumn {
  int32_t position, sequence;
  bool output;
};

struct RefMeasure {
  double activation = std::numeric_limits<double>::quiet_NaN();
  double dose = std::numeric_limits<double>::quiet_NaN();
  bool measured = false, fired = false, limited = false;
};

using Matrix = std::vector<std::vector<double>>;

class Reference {
 public:
  explicit Reference(Spec spec) : spec_(std::move(spec)) {}

  void request(int32_t sequence, int32_t n_prompt) { n_prompt_[sequence] = n_prompt; }
  void begin(std::vector<RefColumn> columns);
  /// Rows are all columns, or with `outputs_only` those that are output.
  Matrix residual(int32_t layer, Matrix h, bool outputs_only);
  void end();

  /// By sequence and position, one per rule.
  std::map<int32_t, std::map<int32_t, std::vector<RefMeasure>>> measures;

 private:
  bool in_scope(const scope_rule & r, const RefColumn & c) const;
  double activation(const FeatureSpec & f, const std::vector<double> & h) const;
  void evaluate(uint32_t trigger, size_t column, bool has_row);
  Firing firing(uint32_t trigger, size_t column) const;
  bool may_act(const scope_rule & r, size_t column) const;
  void change(const PointSpec & point, size_t column, std::vector<double> & h);

  Spec spec_;
  std::map<int32_t, int32_t> n_prompt_;
  std::map<int32_t, std::vector<std::vector<float>>> history_;  ///< by sequence and trigger: every value so far
  std::vector<RefColumn> columns_;
  std::vector<std::vector<double>> z_;                     ///< by column and feature; NaN: not measured
  std::vector<std::vector<std::optional<float>>> values_;  ///< by column and trigger; none: no row
  std::vector<std::vector<RefMeasure>> now_;               ///< by column and rule
};

}  // namespace test
