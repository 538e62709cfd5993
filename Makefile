# make run    both processes on loopback, until Ctrl-C
# make test   everything that must hold: lint, types, tests
# make fuzz   the fuzz targets, FUZZ_S seconds each
# make format

PYTHON ?= python3
VENV ?= .venv
STATE_DIR ?= var
AGENT_PORT ?= 7700
HTTP_PORT ?= 8080
FUZZ_S ?= 60

BIN = $(VENV)/bin

.PHONY: run test lint format fuzz clean

run: $(VENV)/.for-run
	@exec $(BIN)/python deploy/run_local.py --state-dir "$(STATE_DIR)" --agent-port $(AGENT_PORT) --http-port $(HTTP_PORT)

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.for-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.for-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

fuzz: $(VENV)/.for-test
	$(BIN)/python fuzz/run.py --seconds $(FUZZ_S)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.for-run: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.for-test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,fuzz]'
	@touch $@
