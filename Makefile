# From a fresh clone with python3, its venv module and make. `make help` lists the commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2
RUFF := $(shell sed -n 's/.*"\(ruff==[0-9.]*\)".*/\1/p' pyproject.toml)

.PHONY: help demo test test-integration lint types mutants bench clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-16s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.demo-ready  ## restore, rate and rank a photograph [IMAGE=photo.jpg]; writes demo/
	$(BIN)/python -m restoration.demo $(if $(IMAGE),--image "$(IMAGE)") --out demo

test: $(VENV)/.test-ready  ## the fast tests: no network, no GPU; minutes
	$(PYTEST) --durations 10 --durations-min 2 --dist worksteal -m 'not integration and not gpu and not slow'

test-integration: $(VENV)/.test-ready  ## the other tests: servers, trainings, guides, examples; 15 minutes
	$(PYTEST) --dist loadfile -m 'integration and not gpu and not slow'

lint: $(VENV)/.lint-ready  ## ruff: rules and format; then the types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types

types: $(VENV)/.test-ready  ## mypy: a minute the first time, then seconds
	$(BIN)/mypy

mutants: $(VENV)/.test-ready  ## plant mistakes that tests must notice [NAMES="a b"]; minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/run.py $(NAMES)

bench: $(VENV)/.test-ready  ## what measuring costs, against the plain way [PARTS="counts words"]; minutes
	$(BIN)/python benchmarks/bench.py $(if $(PARTS),--parts $(PARTS))

clean:  ## remove .venv, demo/ and build/
	rm -rf $(VENV) demo build *.egg-info

# The stamps stand in .venv, so removing it starts anew, and are older than a changed pyproject.toml.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo-ready: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.test-ready: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.demo-ready $(VENV)/.lint-ready

$(VENV)/.lint-ready: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet '$(RUFF)'
	touch $@
