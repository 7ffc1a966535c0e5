#include "columns.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "sequences.hpp"

namespace scope {
namespace {

/// The start of llama_ubatch in llama.cpp's src/llama-batch.h.
struct RawUbatch {
  uint32_t equal_seqs, n_tokens, n_seq_tokens, n_seqs, n_seqs_unq, n_pos;
  const int32_t * token;
  const float * embd;
  const int32_t * pos;
  const int32_t * n_seq_id;
  const int32_t * const * seq_id;
  const int32_t * seq_id_unq;
  const int32_t * seq_idx;
  const int8_t * output;
};

constexpr uint32_t max_columns = 1u << 20;

std::atomic<Layout> layout{Layout::unknown};

/// Whether these bytes are mapped. A pointer read through a wrong layout must not take the process down.
bool readable(const void * p, size_t n_bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(p) & ~(page - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(p) + n_bytes - 1) & ~(page - 1);
  if (p == nullptr || last < first) return false;
  for (uintptr_t at = first; at <= last; at += page) {
    unsigned char in_core = 0;
    if (mincore(reinterpret_cast<void *>(at), page, &in_core) != 0 && errno == ENOMEM) return false;
  }
  return true;
}

template <typename T>
bool readable_array(const T * p, size_t n) {
  return reinterpret_cast<uintptr_t>(p) % alignof(T) == 0 && readable(p, n * sizeof(T));
}

bool shows(const RawUbatch & u, const std::vector<Column> & expected) {
  const size_t n = expected.size();
  if (u.n_tokens != n || uint64_t{u.n_seq_tokens} * u.n_seqs != n) return false;
  if (!readable_array(u.token, n) || !readable_array(u.pos, n) || !readable_array(u.n_seq_id, n) ||
      !readable_array(u.seq_id, n) || !readable_array(u.output, n))
    return false;
  for (size_t i = 0; i < n; i++)
    if (u.n_seq_id[i] != 1 || !readable_array(u.seq_id[i], 1)) return false;
  ReadColumns seen;
  return read_columns(&u, seen) && seen.columns == expected;
}

}  // namespace

Layout ubatch_layout() {
  return layout.load(std::memory_order_acquire);
}

void prove_ubatch_layout(const void * ubatch, const std::vector<Column> & expected) {
  if (ubatch_layout() == Layout::broken) return;
  const bool ok = readable(ubatch, sizeof(RawUbatch)) && shows(*static_cast<const RawUbatch *>(ubatch), expected);
  layout.store(ok ? Layout::proved : Layout::broken, std::memory_order_release);
}

bool recognise_ubatch_layout(const void * ubatch, const std::vector<Column> & expected) {
  if (ubatch_layout() == Layout::broken || !readable(ubatch, sizeof(RawUbatch)) ||
      !shows(*static_cast<const RawUbatch *>(ubatch), expected))
    return false;
  layout.store(Layout::proved, std::memory_order_release);
  return true;
}

bool read_columns(const void * ubatch, ReadColumns & out) {
  const RawUbatch & u = *static_cast<const RawUbatch *>(ubatch);
  if (u.n_tokens == 0 || u.n_tokens > max_columns || u.pos == nullptr || u.n_seq_id == nullptr || u.seq_id == nullptr ||
      u.output == nullptr)
    return false;
  out.columns.resize(u.n_tokens);
  out.shared.clear();
  out.raw_embeddings = u.token == nullptr;
  for (uint32_t i = 0; i < u.n_tokens; i++) {
    const int32_t n_seq = u.n_seq_id[i];
    if (n_seq < 1 || n_seq > max_sequences || u.seq_id[i] == nullptr || u.pos[i] < 0) return false;
    for (int32_t s = 0; s < n_seq; s++)
      if (u.seq_id[i][s] < 0 || u.seq_id[i][s] >= max_sequences) return false;
    out.columns[i] = {out.raw_embeddings ? -1 : u.token[i], u.pos[i], u.seq_id[i][0], u.output[i] != 0};
    for (int32_t s = 1; s < n_seq; s++) out.shared.push_back({i, u.seq_id[i][s]});
  }
  return true;
}

}  // namespace scope
