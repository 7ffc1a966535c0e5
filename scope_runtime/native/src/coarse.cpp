#include "coarse.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace scope {
namespace {

constexpr float most = 127.0f;

}  // namespace

// With w the whole row and v the coarse one: |v.h - w.h| <= ||v - w|| ||h|| by Cauchy and Schwarz. A sum of n products
// in F32 is off by at most n 2^-24 ||w|| ||h|| or so in any order, and there are two of them.
CoarseEncoder coarse(const float * rows, size_t n_rows, size_t n_embd) {
  CoarseEncoder out;
  out.rows.resize(n_rows * n_embd);
  out.scale.resize(n_rows);
  out.off.resize(n_rows);
  const double rounding = 0x1p-24 * static_cast<double>(n_embd + 16);
  for (size_t r = 0; r < n_rows; r++) {
    const float * whole = rows + r * n_embd;
    float largest = 0.0f;
    bool finite = true;
    for (size_t i = 0; i < n_embd; i++) {
      finite = finite && std::isfinite(whole[i]);
      largest = std::max(largest, std::fabs(whole[i]));
    }
    // Rows too small for a scale stay 0 and are off by their length.
    const float scale = finite && largest > 1e-30f ? largest / most : 0.0f;
    double apart = 0.0, w = 0.0, v = 0.0;
    for (size_t i = 0; i < n_embd; i++) {
      const float q = scale > 0.0f ? std::clamp(std::nearbyint(whole[i] / scale), -most, most) : 0.0f;
      out.rows[r * n_embd + i] = static_cast<int8_t>(q);
      const double a = double{whole[i]}, b = double{q} * double{scale};
      apart += (a - b) * (a - b);
      w += a * a;
      v += b * b;
    }
    const double off = 1.001 * (std::sqrt(apart) + rounding * (std::sqrt(w) + std::sqrt(v)));
    out.scale[r] = scale;
    out.off[r] = finite ? static_cast<float>(off) : std::numeric_limits<float>::infinity();
  }
  return out;
}

}  // namespace scope
