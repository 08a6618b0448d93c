# One word for each thing to do; all of them make the environment first (scripts/setup), which is quick when it is there.
# ARGS reaches the tool: make demo ARGS=--once, make test ARGS="-k lineage".

BIN := .venv/bin
ARGS ?=

# A process that may not write bytecode compiles Airflow again at every start.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

# Every operator, sensor and trigger of MLflow, the run tree, the registry, the pages.
MLFLOW_TESTS := $(wildcard tests/*/test_mlflow*.py) tests/operators/test_promotion.py tests/tracking tests/lineage tests/plugin tests/listeners

# The docstrings are read by importing, which imports Airflow: not with the settings of whoever calls.
DOCS_ENV := AIRFLOW_HOME=$(CURDIR)/build/airflow AIRFLOW__LOGGING__LOGGING_LEVEL=ERROR

.DEFAULT_GOAL := help
.PHONY: help setup demo up down test test-mlflow test-cluster test-compose lint types contracts matrix bench docs docs-links release-check clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

setup: ## Make .venv with the locked dependencies
	@scripts/setup

demo: setup ## Run two nights of retraining on a real Airflow and MLflow (ARGS=--once: end by itself)
	@exec $(BIN)/python -m demo $(ARGS)

# These two need Docker, and no environment. Make hands PROFILES=... on.
up: ## Start Airflow, MLflow and PostgreSQL in containers (PROFILES=celery,objects,mail: what else)
	@scripts/compose up $(ARGS)

down: ## Stop them; the volumes stay (ARGS=-v: they go too)
	@scripts/compose down $(ARGS)

test: setup ## Run the test suite, four tests at a time: many of them wait
	@exec scripts/setup run $(BIN)/python -m pytest -n 4 --no-loadscope-reorder $(ARGS)

test-mlflow: setup ## Run what speaks to MLflow on another form of its server: ARGS=--mlflow=postgresql, basic-auth or workspaces
	@exec scripts/setup run $(BIN)/python -m pytest -n 3 --no-loadscope-reorder $(MLFLOW_TESTS) $(ARGS)

test-cluster: setup ## Run the tests that need a Kubernetes: the one of KUBECONFIG (docs/pod-failures.md says which variables they read)
	@exec $(BIN)/python -m pytest --run-cluster -m cluster $(ARGS)

test-compose: setup ## Run the nightly DAG in docker-compose.yaml, on a Docker engine of the tests' own (ARGS=--run-full: every profile)
	@exec $(BIN)/python -m pytest --run-compose -m compose $(ARGS)

lint: setup ## Check style and formatting
	$(BIN)/ruff check $(ARGS) .
	$(BIN)/ruff format --check .

types: setup ## Check the types
	$(BIN)/mypy $(ARGS)

contracts: setup ## Check that imports go one way
	$(BIN)/lint-imports $(ARGS)

matrix: setup ## Test the wheel on each supported Airflow and Python (ARGS=--corners: four of them)
	@scripts/setup run $(BIN)/python scripts/matrix.py $(ARGS)

bench: setup ## Measure what the package costs
	@exec $(BIN)/python -m benchmarks $(ARGS)

docs: setup ## Make the pages into a site, build/docs; warnings, broken links and pages that nothing leads to are errors
	@$(DOCS_ENV) $(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/docs $(ARGS)
	@echo "build/docs/index.html"

docs-links: setup ## Ask the addresses of others that the pages link to; needs a way out
	@$(DOCS_ENV) $(BIN)/python -m sphinx -q -W --keep-going -b linkcheck -d build/doctrees docs build/docs-links $(ARGS)

release-check: setup ## Build what would be released, check it, and try it out in an environment of its own
	@exec $(BIN)/python scripts/release.py $(ARGS)

clean: ## Delete .venv, .tools, the demo's state and caches (end the demo first)
	rm -rf .venv .tools .demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
