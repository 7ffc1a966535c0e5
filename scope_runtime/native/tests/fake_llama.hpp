// A llama.cpp of one page: the same symbols, called in the same order, computing something that a test can predict.
#pragma once

#include <cstddef>
#include <cstdint>

using FakeCallback = bool (*)(void * tensor, bool ask, void * user_data);

struct FakeBatch {
  uint32_t n;
  const int32_t * tokens;
  const int32_t * pos;
  const int32_t * seq;
  const int8_t * output;
};

/// The functions that the test takes from the library with dlsym: they are not llama.cpp's.
struct FakeApi {
  void * (*context_new)(FakeCallback callback, void * user_data);
  void (*context_free)(void * context);
  /// One ubatch. Every element of a column's residual starts as its token, and each block adds 1 to it. Returns, by
  /// output column, the last block's first element. `rebuild`: as a graph of another shape would.
  void (*decode)(void * context, const FakeBatch * batch, bool rebuild, float * out);
  /// A rebuild that fails after its callback was set.
  void (*fail_rebuild)(void * context);
  /// A shift of the KV: inputs are set without an ubatch.
  void (*shift)(void * context);
  /// Whether the scheduler has a callback now.
  bool (*has_callback)(void * context);
  /// From now on ubatches are laid out differently.
  void (*change_layout)();
};

constexpr uint32_t fake_n_embd = 8, fake_n_layer = 3;

extern "C" const FakeApi * fake_llama_api();
