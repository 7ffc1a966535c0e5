// The eval callback: which graph nodes the hook wants, and a residual's way from the backend and back.
#pragma once

#include "hook.hpp"
#include "originals.hpp"

namespace scope {

/// What scope_hook_callback returns: user data is the scope_hook.
bool eval_with_hook(void * tensor, bool ask, void * user_data);

/// One node. `chained` is called after ours and may be empty; its answer counts as it would without us.
bool eval_node(scope_hook & hook, const ChainedCallback & chained, void * tensor, bool ask);

/// Whether the callback has to be there at all during the current ubatch.
bool callback_needed(const scope_hook & hook, const ChainedCallback & chained);

}  // namespace scope
