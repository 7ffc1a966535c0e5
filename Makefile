# One line each: what people and CI run. The work is in scripts/.

.PHONY: help demo test check env bench docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/'

demo: ## install what running needs, then steer the model that ships with the repository
	@scripts/env run
	@.venv/bin/python scripts/demo.py

test: ## install what the tests need, then run every check and every test
	@scripts/env test
	@scripts/check
	@scripts/test

check: ## formatters, linters, types, generated pages
	@scripts/env test
	@scripts/check

env: ## the whole environment in .venv, without running anything
	@scripts/env test

bench: ## what steering costs in tokens per second, with a plot, into benchmarks/
	@scripts/env test
	@.venv/bin/python benchmarks/overhead.py

docs: ## write the generated pages again
	@scripts/env run
	@.venv/bin/python -m scope_runtime.policy.reference
	@.venv/bin/python -m scope_runtime.metrics.reference

clean: ## remove what was built, .venv included; the compiled llama.cpp wheel stays in the user's cache
	rm -rf .venv build demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f scope_runtime/native/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
