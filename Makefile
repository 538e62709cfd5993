# make run    both processes on loopback, until Ctrl-C; development account root / 0penBmc
# make test   everything that must hold: lint, types, tests
# make coverage   whether the tests of what judges and signs reach every branch of it
# make fuzz   the fuzz targets, FUZZ_S seconds each, FUZZ_JOBS at a time
# make bench  ours beside cfssl and step-ca; installs those (Debian), BENCH says what: make bench BENCH="--kinds p256"
# make soak   everything at once for SOAK_S seconds, and the promises at the end

PYTHON ?= python3
VENV ?= .venv
STATE_DIR ?= var
AGENT_PORT ?= 7700
HTTP_PORT ?= 8080
HTTPS_PORT ?= 8443
FUZZ_S ?= 60
SOAK_S ?= 600
BENCH ?=
FUZZ_JOBS ?= 2
# Test processes at a time: tests wait for clocks and disks more than they compute.
TEST_JOBS ?= 4

BIN = $(VENV)/bin

# The tests of protocol, vmi_agent.policy and vmi_agent.issuance.issue.
COVERING = channel_rules connection connection_stateful csr_corpus der drain frames hosts issue policy key_policy \
    malformed patterns profile_file profiles records reserved_names shared_ledger vectors visible

.PHONY: run test packages lint format coverage fuzz soak bench clean scanner

run: $(VENV)/.for-run
	@exec $(BIN)/python deploy/run_local.py --state-dir "$(STATE_DIR)" --agent-port $(AGENT_PORT) --http-port $(HTTP_PORT) --https-port $(HTTPS_PORT)

test: packages lint scanner
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS)

# Debian's packages that the tests use, where this user may install them.
packages:
	tests/install_packages

lint: $(VENV)/.for-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.for-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage: $(VENV)/.for-test
	$(BIN)/python -m coverage run -m pytest --quiet $(wildcard $(COVERING:%=tests/*/test_%.py))
	$(BIN)/python -m coverage report

fuzz: $(VENV)/.for-test
	$(BIN)/python fuzz/run.py --seconds $(FUZZ_S) --jobs $(FUZZ_JOBS)

soak: $(VENV)/.for-test
	$(BIN)/python benchmarks/soak.py --seconds $(SOAK_S)

bench: $(VENV)/.for-bench
	benchmarks/install_peers build/bench
	$(BIN)/python benchmarks/bench.py --out build/bench $(BENCH)

# The TLS scanner wants an older cryptography than ours, so it has an environment of its own.
scanner: $(VENV)/scanner/bin/sslyze

$(VENV)/scanner/bin/sslyze: | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/scanner
	$(VENV)/scanner/bin/pip install --quiet --disable-pip-version-check 'sslyze >= 6.3'

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.for-run: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.for-test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,fuzz]'
	@touch $@

$(VENV)/.for-bench: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,bench]'
	@touch $@
