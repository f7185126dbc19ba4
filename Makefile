# One command each, from a fresh clone with python3, its venv module and make:
#   make demo [IMAGE=photo.jpg]   degrade, restore, rate, explain and rank; writes demo/
#   make test                     the default tests
#   make lint                     ruff over the whole tree: rules and format
#   make mutants [NAMES="a b"]    small mistakes in a copy of the tree, each of which tests must notice; minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUFF := $(shell sed -n 's/.*"\(ruff==[0-9.]*\)".*/\1/p' pyproject.toml)

.PHONY: demo test lint mutants clean

demo: $(VENV)/.demo-ready
	$(BIN)/python -m restoration.demo $(if $(IMAGE),--image "$(IMAGE)") --out demo

test: $(VENV)/.test-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.lint-ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

mutants: $(VENV)/.test-ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/run.py $(NAMES)

clean:
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
