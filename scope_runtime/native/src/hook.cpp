#include "hook.hpp"

#include <algorithm>
#include <chrono>

namespace scope {
namespace {

int64_t steady_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

constexpr size_t max_names = 4096;

}  // namespace

Stopwatch::Stopwatch(Counter & ns) : ns_(ns), began_(steady_ns()) {}

Stopwatch::~Stopwatch() {
  ns_.add(static_cast<uint64_t>(steady_ns() - began_));
}

void Stats::note_swap(std::chrono::nanoseconds took) {
  const auto ns = static_cast<uint64_t>(took.count());
  n_swaps.value.fetch_add(1, std::memory_order_relaxed);
  swap_ns.value.store(ns, std::memory_order_relaxed);
  uint64_t most = swap_ns_max.get();
  while (ns > most && !swap_ns_max.value.compare_exchange_weak(most, ns, std::memory_order_relaxed)) {
  }
}

void NameRecord::note(const char * name) {
  if (names.size() < max_names && std::find(names.begin(), names.end(), name) == names.end()) names.emplace_back(name);
}

}  // namespace scope

scope_hook::scope_hook(uint32_t n_embd_, uint32_t n_layer_, scope::Ring ring_)
    : n_embd(n_embd_), n_layer(n_layer_), ring(std::move(ring_)), sequences(ring) {}

uint64_t scope_hook::publish(uint64_t others, const std::vector<scope::Assigned> & assigned) {
  const auto began = std::chrono::steady_clock::now();
  const uint64_t number = slot.assign(others, assigned);
  if (number != 0) stats.note_swap(std::chrono::steady_clock::now() - began);
  return number;
}

void scope_hook::begin(bool by_hand, bool raw_embeddings) {
  scope::Ubatch & u = ubatch;
  const scope::Assignment & assignment = slot.pin();
  u.by_hand = by_hand;
  u.raw_embeddings = raw_embeddings;
  sequences.begin(u, assignment);
  u.prepare();
  u.open = true;
  acknowledged.store(assignment.programs.front().serial, std::memory_order_release);
  assignment_acknowledged.store(assignment.number, std::memory_order_release);
  stats.n_ubatches.add(1);
  stats.n_columns.add(u.size());
  stats.n_unsteered_columns.add(static_cast<uint64_t>(std::count(u.lane_of.begin(), u.lane_of.end(), SCOPE_NONE)));
  stats.n_unmatched.add(u.n_conflicts);
}

bool scope_hook::wants(int32_t layer) const {
  if (!ubatch.open) return false;
  for (uint32_t l = 0; l < ubatch.n_lanes(); l++)
    if (ubatch.lane(l).point_at(layer) != SCOPE_NONE) return true;
  return false;
}

bool scope_hook::wants_any() const {
  if (!ubatch.open) return false;
  for (uint32_t l = 0; l < ubatch.n_lanes(); l++)
    if (!ubatch.lane(l).visited.empty()) return true;
  return false;
}

bool scope_hook::visit(int32_t layer, uint32_t n_rows, scope::Rows & out) {
  out = {};
  stats.n_residuals.add(1);
  const bool of_outputs = n_rows != ubatch.size();
  if ((of_outputs && n_rows != ubatch.outputs.size()) || layer <= ubatch.last_layer) {
    stats.n_unmatched.add(1);
    return false;
  }
  ubatch.last_layer = layer;
  out = scope::rows_wanted(ubatch, layer, {of_outputs, 0, n_rows});
  return true;
}

scope::Rows scope_hook::apply(int32_t layer, const scope::Rows & wanted, float * h) {
  return ubatch.open ? scope::apply_layer(ubatch, layer, wanted, h, scratch_) : scope::Rows{};
}

void scope_hook::commit() {
  scope::Ubatch & u = ubatch;
  if (!u.open) return;
  u.open = false;
  // A hook point that never came by was not steered: the same failure as rows that fit nothing, and counted with it.
  for (uint32_t l = 0; l < u.n_lanes(); l++) {
    const std::vector<uint8_t> & visited = u.lane(l).visited;
    stats.n_unmatched.add(static_cast<uint64_t>(std::count(visited.begin(), visited.end(), 0)));
  }
  sequences.commit(u);
  u.clear_lanes();
  slot.unpin();
}
