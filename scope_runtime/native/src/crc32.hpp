// CRC-32 as zlib computes it (polynomial 0xEDB88320, reflected): the checksum of a program blob.
#pragma once

#include <cstddef>
#include <cstdint>

namespace scope {

uint32_t crc32(const void * data, size_t n_bytes);

}  // namespace scope
