// The exact top-k gate by coarse rows against a plain loop over whole ones: the same answers, also where coarse rows
// are equal.
#include <cmath>
#include <limits>

#include "check.hpp"
#include "coarse.hpp"
#include "kernels.hpp"
#include "spec.hpp"
#include "topk.hpp"

using namespace test;

namespace {

/// A program with one encoder, of which every latent is a feature.
Spec with_encoder(uint32_t n_embd, uint32_t k, const Row & rows, const Row & bias) {
  Spec s;
  s.n_embd = n_embd;
  s.encoders.push_back({k, rows, bias});
  const uint32_t r = s.add_rule(SCOPE_OP_MUTE);
  const uint32_t f = s.add_feature(0, Row(rows.begin(), rows.begin() + n_embd), SCOPE_GATE_TOPK);
  s.point(0).features.back().f.encoder = 0;
  s.point(0).features.back().f.latent = 0;
  s.add_delta(0, r, SCOPE_DELTA_SCALE, Row(n_embd, 1.0f), -1.0f, f);
  return s;
}

/// Asks for every latent at two columns and compares with the rule itself.
void compare(uint32_t n_embd, uint32_t k, const Row & rows, const Row & bias, const Row & h) {
  const Spec spec = with_encoder(n_embd, k, rows, bias);
  const auto blob = spec.blob();
  const auto program = scope::Program::load(blob.data(), blob.size());
  const auto d_sae = static_cast<uint32_t>(bias.size());
  std::vector<scope::TopkQuestion> questions;
  Row z(2 * d_sae, 1.0f), scores(d_sae);
  for (uint32_t c = 0; c < 2; c++)
    for (uint32_t l = 0; l < d_sae; l++)
      questions.push_back({0, l, h.data() + c * n_embd, z.data() + c * d_sae + l, 0.0f, 0, 0.0f});
  answer_topk(*program, questions);
  for (uint32_t c = 0; c < 2; c++) {
    scope::kernels().scores(rows.data(), bias.data(), d_sae, h.data() + c * n_embd, n_embd, scores.data());
    for (uint32_t l = 0; l < d_sae; l++) {
      uint32_t n_better = 0;
      for (uint32_t j = 0; j < d_sae; j++)
        if (scores[j] > scores[l] || (scores[j] == scores[l] && j < l)) n_better++;
      CHECK(z[c * d_sae + l] == (n_better < k ? 1.0f : 0.0f));
    }
  }
}

}  // namespace

TEST(topk, coarse_rows_decide_nothing_that_whole_rows_do_not) {
  Random random(11);
  for (const uint32_t n_embd : {1u, 5u, 64u, 333u}) {
    const uint32_t d_sae = 150;
    const Row h = random.row(2 * n_embd);
    compare(n_embd, 20, random.row(d_sae * n_embd), random.row(d_sae), h);
    // Rows that are one when they are coarse.
    const Row one = random.row(n_embd);
    Row rows, bias(d_sae, 0.25f);
    for (uint32_t l = 0; l < d_sae; l++)
      for (const float x : one) rows.push_back(x * (1.0f + 1e-6f * static_cast<float>(random.below(40))));
    compare(n_embd, 20, rows, bias, h);
    // One row that is all rows: of equals the lowest.
    rows.clear();
    for (uint32_t l = 0; l < d_sae; l++) rows.insert(rows.end(), one.begin(), one.end());
    compare(n_embd, 20, rows, bias, h);
  }
}

TEST(topk, numbers_at_the_ends_of_what_f32_holds) {
  Random random(12);
  const uint32_t n_embd = 32, d_sae = 70;
  for (const float size : {1e-42f, 1e-20f, 1e18f, 3e37f}) {
    const Row rows = random.row(d_sae * n_embd, size), bias = random.row(d_sae, size);
    compare(n_embd, 7, rows, bias, random.row(2 * n_embd));
    compare(n_embd, 7, rows, bias, random.row(2 * n_embd, 1e20f));
  }
  Row rows = random.row(d_sae * n_embd);
  rows[5] = 3.4e38f;
  compare(n_embd, 7, rows, random.row(d_sae), random.row(2 * n_embd));
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Row h = random.row(2 * n_embd);
    h[3] = bad;
    compare(n_embd, 7, random.row(d_sae * n_embd), random.row(d_sae), h);
  }
}

TEST(topk, the_bound_holds_and_is_no_blank_cheque) {
  Random random(13);
  const uint32_t n = 256, n_rows = 40;
  const Row rows = random.row(n_rows * n), h = random.row(n), bias = random.row(n_rows);
  const scope::CoarseEncoder rough = scope::coarse(rows.data(), n_rows, n);
  const float h_norm = scope::norm(h.data(), n);
  for (const scope::Kernels * k : scope::runnable_kernels()) {
    Row about(n_rows), exact(n_rows);
    k->scores_i8(rough.rows.data(), rough.scale.data(), bias.data(), n_rows, h.data(), n, about.data());
    k->scores(rows.data(), bias.data(), n_rows, h.data(), n, exact.data());
    for (uint32_t r = 0; r < n_rows; r++) {
      CHECK(std::fabs(about[r] - exact[r]) <= scope::room(rough.off[r], h_norm, bias[r]));
      CHECK(rough.off[r] < 0.012f * scope::norm(rows.data() + r * n, n));
    }
  }
}
