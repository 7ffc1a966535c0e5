#include "crc32.hpp"

#include <array>

namespace scope {
namespace {

constexpr size_t n_slices = 8;
using Slices = std::array<std::array<uint32_t, 256>, n_slices>;

constexpr Slices make_slices() {
  Slices t{};
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ (c & 1u ? 0xEDB88320u : 0u);
    t[0][i] = c;
  }
  for (size_t s = 1; s < n_slices; s++)
    for (uint32_t i = 0; i < 256; i++) t[s][i] = (t[s - 1][i] >> 8) ^ t[0][t[s - 1][i] & 0xffu];
  return t;
}

constexpr Slices slices = make_slices();

}  // namespace

// Eight bytes a step: a program with a full encoder has hundreds of megabytes, and a reload should not wait for it.
uint32_t crc32(const void * data, size_t n_bytes) {
  const auto * p = static_cast<const uint8_t *>(data);
  uint32_t crc = ~0u;
  for (; n_bytes >= 8; n_bytes -= 8, p += 8) {
    crc ^= static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
           static_cast<uint32_t>(p[3]) << 24;
    crc = slices[7][crc & 0xffu] ^ slices[6][(crc >> 8) & 0xffu] ^ slices[5][(crc >> 16) & 0xffu] ^
          slices[4][crc >> 24] ^ slices[3][p[4]] ^ slices[2][p[5]] ^ slices[1][p[6]] ^ slices[0][p[7]];
  }
  for (; n_bytes > 0; n_bytes--, p++) crc = (crc >> 8) ^ slices[0][(crc ^ *p) & 0xffu];
  return ~crc;
}

}  // namespace scope
