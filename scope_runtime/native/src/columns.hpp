// llama.cpp's private llama_ubatch, read with suspicion: its layout counts only once a known batch has proved it.
#pragma once

#include <vector>

#include "ubatch.hpp"

namespace scope {

struct ReadColumns {
  std::vector<Column> columns;
  std::vector<SharedColumn> shared;
  bool raw_embeddings = false;
};

enum class Layout { unknown, proved, broken };

/// Process-wide: one llama.cpp, one layout.
Layout ubatch_layout();
/// Compares an ubatch with the columns that it must have; from then on the layout is proved, or broken for good.
void prove_ubatch_layout(const void * ubatch, const std::vector<Column> & expected);
/// Whether an ubatch shows exactly these columns; then, and only then, the layout is proved. For batches among which
/// one is known: the others prove nothing.
bool recognise_ubatch_layout(const void * ubatch, const std::vector<Column> & expected);
/// False where the numbers make no sense.
bool read_columns(const void * ubatch, ReadColumns & out);

}  // namespace scope
