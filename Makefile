# `make demo` and `make test` need python3 (3.10 or newer) and a package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
READY := $(VENV)/.installed_to_run
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
PEERS := $(basename $(notdir $(wildcard benchmarks/peers/*.txt)))

# pip leaves compiling to the first import (--no-compile), so imports must keep what they compiled, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench bench-gpu bench-peers chaos format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(STAMP) ## create or reuse .venv with the tested set of constraints.txt, tools for development too

# Both are made again when the dependencies change, and instant otherwise.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $(READY) $@

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[carbon,report]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10: run make with PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

demo: $(READY) ## the whole recipe on the embedded data, about ten minutes on two cores
	$(BIN)/llama2-pl demo --out runs/demo

test: $(STAMP) ## the tests, two at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

check: $(STAMP) ## what continuous integration runs: lint, format, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

bench: $(STAMP) bench-peers ## measure against the peers; writes benchmarks/results/PROCESSOR/*.json, three quarters of an hour of a quiet machine
	$(BIN)/python -m benchmarks.run

bench-gpu: $(STAMP) benchmarks/.peers/transformers/.installed ## the 7B shape on one GPU of 80 GB or more
	$(BIN)/python -m benchmarks.run --only gpu

bench-peers: $(PEERS:%=benchmarks/.peers/%/.installed) ## transformers, litgpt and TRL in environments of their own, 4 GB

# each with its pinned versions and our torch
benchmarks/.peers/%/.installed: benchmarks/peers/%.txt constraints.txt
	$(PYTHON) -m venv $(@D)
	grep '^torch==' constraints.txt > $(@D)/torch.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $(@D)/torch.txt -r $<
	@touch $@

chaos: $(STAMP) ## kill, damage, feed crafted files; writes benchmarks/results/chaos.*, about twenty minutes
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m benchmarks.chaos

format: $(STAMP) ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find llama2_pl callbacks configs tests -name __pycache__ -type d -prune -exec rm -rf {} +
