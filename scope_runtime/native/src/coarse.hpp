// An encoder in a quarter of its bytes, for the exact top-k gate: what it cannot decide, the whole rows do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace scope {

struct CoarseEncoder {
  std::vector<int8_t> rows;  ///< to be multiplied with the row's scale
  std::vector<float> scale;
  /// How far a latent's score by its coarse row can be from that by its whole row, both summed in F32 in whatever
  /// order, for a residual of length 1 and no bias; infinite or NaN where that is not known.
  std::vector<float> off;
};

CoarseEncoder coarse(const float * rows, size_t n_rows, size_t n_embd);

/// The same for a residual and a bias of any size.
inline float room(float off, float h_norm, float bias) {
  // The length was rounded too; adding the bias rounds once in each score.
  return off * h_norm * 1.001f + (bias < 0.0f ? -bias : bias) * 0x1p-21f;
}

}  // namespace scope
