// The exact top-k gate: is a latent among the k largest pre-activations of its layer's whole encoder?
#pragma once

#include <cstdint>
#include <vector>

#include "program.hpp"

namespace scope {

/// One latent at one column.
struct TopkQuestion {
  uint32_t encoder;
  uint32_t latent;
  const float * h;
  float * z;    ///< holds the feature's pre-activation; set to 0 when it is not among the k
  float score;  ///< the latent's own pre-activation, by the encoder's row
  uint32_t n_better;
};

/// Answers all questions. Every row of an encoder is read at most once for all columns, is scored at most once a
/// column, and a column is left as soon as its questions are decided.
void answer_topk(const Program & program, std::vector<TopkQuestion> & questions);

}  // namespace scope
