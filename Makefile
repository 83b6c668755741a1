# Scenarium: two commands do everything on a fresh machine, `make demo` and `make test`.
# `make` alone explains the targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Every file that decides what must be installed; a change of any makes the set-up run again.
INPUTS := pyproject.toml constraints.txt requirements-dev.txt $(wildcard plugins/*/pyproject.toml extensions/*/pyproject.toml)
PACKAGES := $(wildcard plugins/*/scenarium_* extensions/*/scenarium_*)
.DEFAULT_GOAL := help

.PHONY: help setup setup-test demo test check bench-spine bench-gateway bench-triton bench-faults fuzz wheels clean

help: ## show this help
	@echo "Scenarium · make targets"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.setup ## make the virtual environment with core, gateway and all plugins

$(VENV)/.setup: $(INPUTS)
	@echo "==> set-up: virtual environment in $(VENV) (about 6 GB; 2 to 6 minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python scripts/setup_environment.py
	@touch $@

setup-test: $(VENV)/.setup-test ## what only the tests need: the Rasa environment, Chromium

$(VENV)/.setup-test: $(VENV)/.setup scripts/setup_triton.py plugins/chatbot/pyproject.toml $(wildcard plugins/chatbot/scenarium_chatbot/rasa-3.6/lock-*.txt)
	@$(BIN)/python scripts/setup_tests.py
	@touch $@

demo: setup ## set up, train three scenarios on real data, serve, predict, show the answers
	@$(BIN)/python scripts/demo.py

test: setup-test check ## set up, then run every test (under 25 minutes on 2 cores)
	@$(BIN)/python scripts/run_tests.py

check: setup ## ruff and mypy --strict
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy -p scenarium.core -p scenarium.training -p scenarium.gateway -p scenarium.client $(foreach p,$(PACKAGES),-p $(notdir $(p)))

bench-spine: setup-test ## measure the spine's figures and write benchmarks/results/spine.json
	@$(BIN)/python -m benchmarks.spine

bench-gateway: setup-test ## measure the gateway beside five others and write benchmarks/results/gateway.json (20 minutes)
	@$(BIN)/python -m benchmarks.gateway

bench-triton: setup-test ## measure beside a real Triton and transformers, and write benchmarks/results/triton.json
	@$(BIN)/python -m benchmarks.triton

bench-faults: setup-test ## an hour of mixed load with a fault every ten seconds; into the same file
	@$(BIN)/python -m benchmarks.gateway_faults --write

fuzz: setup ## feed what strangers send to the coverage-guided fuzzer: make fuzz SECONDS=600
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600)

wheels: setup ## build every wheel into dist/, for: pip install --find-links dist scenarium-fraud-text
	@rm -rf dist && mkdir dist
	@for part in . plugins/* extensions/*; do [ -f $$part/pyproject.toml ] && $(BIN)/python -m build --wheel --no-isolation --outdir dist $$part > /dev/null && echo "built $$part" || exit 1; done

clean: ## remove what the targets made, the environment included
	rm -rf $(VENV) dist build .cache demo .mypy_cache .ruff_cache .pytest_cache
