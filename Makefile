# Everything below sets itself up: a Python 3.11, a C library and a package index are enough.
PYTHON ?= python3
BIN := .venv/bin
# Prefect keeps its database here and not in the home folder.
export PREFECT_HOME := $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: demo test test-system lint bench fuzz clean
.DEFAULT_GOAL := demo

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: .venv/installed  ## the whole job on the shipped samples, into demo/
	$(BIN)/python -m flows.demo demo

test: .venv/installed  ## every test that the Python environment alone can run
	$(BIN)/pytest -m "not cluster and not browser" --numprocesses logical --maxprocesses 4 --dist loadfile --durations=10

test-system: .venv/installed  ## what needs packages of the system, which it installs: PostgreSQL with Dask, Chromium
	flows/cluster/postgres.sh install
	tests/chromium.sh
	$(BIN)/pytest -m "cluster or browser" --durations=5

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed  ## CPU seconds and memory against the limit, plain windows and MONAI, into build/bench
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.speed build/bench

fuzz: .venv/installed  ## every parser for its share of a minute, by inputs that reach new code
	$(BIN)/python -m tests.fuzz_guided 60

clean:
	rm -rf .venv .prefect build demo
