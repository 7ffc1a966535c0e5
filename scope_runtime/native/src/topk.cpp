#include "topk.hpp"

#include <algorithm>

#include "kernels.hpp"

namespace scope {
namespace {

// Rows scored between two looks at who is decided: few enough that they stay in the cache for the next column.
constexpr uint32_t block_rows = 64;

using Question = std::vector<TopkQuestion>::iterator;

bool is_open(const TopkQuestion & q, uint32_t k) {
  return q.n_better < k;
}

/// Counts the block's latents that beat each open question of one column.
void count_block(Question begin, Question end, uint32_t first, uint32_t n, uint32_t k, const float * scores) {
  for (Question q = begin; q != end; ++q) {
    if (!is_open(*q, k)) continue;
    for (uint32_t i = 0; i < n; i++) {
      const uint32_t latent = first + i;
      if (scores[i] > q->score || (scores[i] == q->score && latent < q->latent)) q->n_better++;
    }
  }
}

void answer_encoder(const Program & program, const scope_encoder & e, Question begin, Question end) {
  const Kernels & run = kernels();
  const size_t n_embd = program.n_embd();
  const float * rows = program.row(e.off_rows);
  const float * bias = program.row(e.off_bias);
  for (Question q = begin; q != end; ++q) {
    run.scores(rows + q->latent * n_embd, bias + q->latent, 1, q->h, n_embd, &q->score);
    q->n_better = 0;
  }

  float scores[block_rows];
  bool any_open = true;
  for (uint32_t first = 0; first < e.d_sae && any_open; first += block_rows) {
    const uint32_t n = std::min(block_rows, e.d_sae - first);
    any_open = false;
    for (Question from = begin; from != end;) {
      const Question to = std::find_if(from, end, [&](const TopkQuestion & q) { return q.h != from->h; });
      const auto open = [&](const TopkQuestion & q) { return is_open(q, e.k); };
      if (std::any_of(from, to, open)) {
        run.scores(rows + first * n_embd, bias + first, n, from->h, n_embd, scores);
        count_block(from, to, first, n, e.k, scores);
        any_open = any_open || std::any_of(from, to, open);
      }
      from = to;
    }
  }
  for (Question q = begin; q != end; ++q)
    if (!is_open(*q, e.k)) *q->z = 0.0f;
}

}  // namespace

void answer_topk(const Program & program, std::vector<TopkQuestion> & questions) {
  std::stable_sort(questions.begin(), questions.end(), [](const TopkQuestion & a, const TopkQuestion & b) {
    return a.encoder != b.encoder ? a.encoder < b.encoder : a.h < b.h;
  });
  for (Question from = questions.begin(); from != questions.end();) {
    const Question to =
        std::find_if(from, questions.end(), [&](const TopkQuestion & q) { return q.encoder != from->encoder; });
    answer_encoder(program, program.encoders[from->encoder], from, to);
    from = to;
  }
}

}  // namespace scope
