# One word for each thing to do; all of them make the environment first (scripts/setup), which is quick when it is there.
# ARGS reaches the tool: make demo ARGS=--once, make test ARGS="-k lineage".

BIN := .venv/bin
ARGS ?=

# A process that may not write bytecode compiles Airflow again at every start.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cluster lint types contracts bench clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

setup: ## Make .venv with the locked dependencies
	@scripts/setup

demo: setup ## Run two nights of retraining on a real Airflow and MLflow (ARGS=--once: end by itself)
	@exec $(BIN)/python -m demo $(ARGS)

test: setup ## Run the test suite, three tests at a time: many of them wait
	@exec $(BIN)/python -m pytest -n 3 --no-loadscope-reorder $(ARGS)

test-cluster: setup ## Run the tests that need a Kubernetes: the one of KUBECONFIG (docs/pods.md says which variables they read)
	@exec $(BIN)/python -m pytest --run-cluster -m cluster $(ARGS)

lint: setup ## Check style and formatting
	$(BIN)/ruff check $(ARGS) .
	$(BIN)/ruff format --check .

types: setup ## Check the types
	$(BIN)/mypy $(ARGS)

contracts: setup ## Check that imports go one way
	$(BIN)/lint-imports $(ARGS)

bench: setup ## Measure what the package costs
	@exec $(BIN)/python -m benchmarks $(ARGS)

clean: ## Delete .venv, .tools, the demo's state and caches (end the demo first)
	rm -rf .venv .tools .demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
