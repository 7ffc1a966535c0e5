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
  float h_norm;
};

/// Answers all questions, as whole rows scored in F32 do. Coarse rows are read at most once for all columns and scored
/// at most once a column; whole rows only of latents that a coarse row cannot place. A column is left as soon as its
/// questions are decided: a latent far from the k largest is, once k larger ones were seen.
void answer_topk(const Program & program, std::vector<TopkQuestion> & questions);

}  // namespace scope
