#include "topk.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.hpp"

namespace scope {
namespace {

// Rows scored between two looks at who is decided: few enough that they stay in the cache for the next column.
constexpr uint32_t block_rows = 64;  // and bits of Block::known_

using Question = std::vector<TopkQuestion>::iterator;

bool is_open(const TopkQuestion & q, uint32_t k) {
  return q.n_better < k;
}

/// Some latents in a row at one column: scores by their coarse rows, and by their whole ones where those are needed.
class Block {
 public:
  Block(const Program & program, uint32_t encoder)
      : e_(program.encoders[encoder]),
        coarse_(program.coarse_encoders[encoder]),
        n_embd_(program.n_embd()),
        rows_(program.row(e_.off_rows)),
        bias_(program.row(e_.off_bias)) {}

  void score(uint32_t first, uint32_t n, const float * h, float h_norm) {
    first_ = first, n_ = n, h_ = h, known_ = 0;
    run_.scores_i8(coarse_.rows.data() + first * n_embd_, coarse_.scale.data() + first, bias_ + first, n, h, n_embd_,
                   about_);
    for (uint32_t i = 0; i < n; i++) {
      // A sum that overflowed is off by more than any bound.
      const bool sound = std::fabs(about_[i]) < 1e37f;
      room_[i] =
          sound ? room(coarse_.off[first + i], h_norm, bias_[first + i]) : std::numeric_limits<float>::infinity();
    }
  }

  /// Counts the latents that beat an open question.
  void count(TopkQuestion & q) {
    for (uint32_t i = 0; i < n_; i++) {
      if (about_[i] + room_[i] < q.score) continue;
      // Also where room or score are not finite: then nothing is certain.
      if (about_[i] - room_[i] > q.score || beats(i, q)) q.n_better++;
    }
  }

 private:
  bool beats(uint32_t i, const TopkQuestion & q) {
    const uint32_t latent = first_ + i;
    if ((known_ >> i & 1u) == 0) {
      run_.scores(rows_ + latent * n_embd_, bias_ + latent, 1, h_, n_embd_, exact_ + i);
      known_ |= uint64_t{1} << i;
    }
    return exact_[i] > q.score || (exact_[i] == q.score && latent < q.latent);
  }

  const Kernels & run_ = kernels();
  const scope_encoder & e_;
  const CoarseEncoder & coarse_;
  const size_t n_embd_;
  const float *rows_, *bias_;
  uint32_t first_ = 0, n_ = 0;
  const float * h_ = nullptr;
  uint64_t known_ = 0;  ///< bit i: exact_[i] is there
  float about_[block_rows], room_[block_rows], exact_[block_rows];
};

void answer_encoder(const Program & program, uint32_t encoder, Question begin, Question end) {
  const scope_encoder & e = program.encoders[encoder];
  const size_t n_embd = program.n_embd();
  const float * bias = program.row(e.off_bias);
  for (Question q = begin; q != end; ++q) {
    const float * row = program.row(e.off_rows) + q->latent * n_embd;
    kernels().scores(row, bias + q->latent, 1, q->h, n_embd, &q->score);
    q->h_norm = norm(q->h, n_embd);
    q->n_better = 0;
  }

  Block block(program, encoder);
  const auto open = [&](const TopkQuestion & q) { return is_open(q, e.k); };
  bool any_open = true;
  for (uint32_t first = 0; first < e.d_sae && any_open; first += block_rows) {
    any_open = false;
    for (Question from = begin; from != end;) {
      const Question to = std::find_if(from, end, [&](const TopkQuestion & q) { return q.h != from->h; });
      if (std::any_of(from, to, open)) {
        block.score(first, std::min(block_rows, e.d_sae - first), from->h, from->h_norm);
        for (Question q = from; q != to; ++q)
          if (open(*q)) block.count(*q);
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
    answer_encoder(program, from->encoder, from, to);
    from = to;
  }
}

}  // namespace scope
