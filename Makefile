# Everything a checkout needs; `make` alone lists the targets.
# Needs Python 3.11 or newer with pip; all the rest is installed into .venv.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# The first of these that runs and is new enough; `make PYTHON=/path/to/python` overrides it.
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.runtime ## install, run scenarios/quickstart.yaml, say where the report is
	$(BIN)/rackcast run scenarios/quickstart.yaml --out out/quickstart

test: lint types ## what CI runs: lint, types, import contracts, all tests
	$(BIN)/pytest --numprocesses auto

lint: $(VENV)/.dev ## ruff (rules and format) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev ## mypy --strict on the package
	$(BIN)/mypy

bench: $(VENV)/.dev ## time the hot paths, print the figures, draw how cost grows (some minutes)
	$(BIN)/pytest tests/bench --benchmark-enable --capture=no
	$(BIN)/python tests/bench/scaling.py

clean: ## remove results and caches; .venv stays (`rm -rf .venv` starts over)
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks \
		.import_linter_cache
	find sim tests -name __pycache__ -type d -exec rm -rf {} +

# The environment in three stages, each with a stamp; a newer pyproject.toml renews the installs.

$(VENV)/.created:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || { \
		echo "Rackcast needs Python 3.11 or newer; try: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@# some distributions leave pip out of new environments: then the outer pip puts it in
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --quiet --python $(BIN)/python install pip; }
	@touch $@

$(VENV)/.runtime: pyproject.toml | $(VENV)/.created
	$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.created
	$(PIP) install --editable '.[dev]'
	@touch $(VENV)/.runtime $@
