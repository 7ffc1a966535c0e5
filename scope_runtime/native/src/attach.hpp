// Which hook belongs to which of llama.cpp's objects in this process.
#pragma once

#include "hook.hpp"

namespace scope {

/// The hook whose context has this memory, or null.
scope_hook * hook_of_memory(void * memory);
/// Forgets a hook that is about to be freed.
void detach(scope_hook * hook);

}  // namespace scope
