# What people type: dev, test, check; and what these are made of. Only `make` and Python 3.11 or later have to be there.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python
# Byte code goes into the environment's folder, also for a user who keeps it out of source trees: without it each start
# takes seconds more.
CACHED := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(abspath $(VENV))/pycache $(RUN)
# Everything but a command's own output goes to stderr: `make -s dev ARGS=--json` prints one line.
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --no-input --require-virtualenv \
	--require-hashes --only-binary :all: --no-deps --no-compile

LOCK := uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help install dev test check lint types audit weaknesses autobahn bench campaign lock clean

help:
	@echo "make dev [ARGS=...]   run everything for development (ARGS=--help lists the options)"
	@echo "make test [ARGS=...]  run the whole test suite"
	@echo "make install          only the environment in $(VENV), for run.py's other commands"
	@echo "make check            lint (ruff, bandit), types, known weaknesses where they can be asked for, tests (with a search for secrets)"
	@echo "make audit            known weaknesses of the dependencies (needs uv and api.osv.dev; fails where they are not to be had)"
	@echo "make autobahn         all 517 cases of the WebSocket conformance suite"
	@echo "make bench [ARGS=...] measure"
	@echo "make campaign [SEED=n] [MINUTES=n] [NODES=3] [FAULTS=F1,F8] [MUTATE=gate]  try to break the promise"
	@echo "make lock             renew requirements/*.txt from pyproject.toml (needs uv)"

install: installed-dev

dev: installed-dev
	@exec $(CACHED) run.py dev $(ARGS)

# With ARGS only some tests may have run: they say nothing about branches.
test: installed-test
	@$(CACHED) -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=90 $(ARGS)
	@$(if $(ARGS),:,$(CACHED) tests/branches.py)

check: lint types weaknesses test

lint: installed-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive auth config gateway sessions run.py

types: installed-test
	@$(BIN)/mypy .

# What is known changes from day to day, and only the network knows: whoever cannot ask has not passed an audit, and is
# told in a check that this was not checked.
ASKED := $(PYTHON) -c 'import socket; socket.create_connection(("api.osv.dev", 443), 10)' 2>/dev/null && command -v uvx >/dev/null
AUDIT := uvx --quiet pip-audit@2.10.1 --vulnerability-service osv --disable-pip --require-hashes -r requirements/test.txt
UNKNOWN := NOT CHECKED: known weaknesses of the dependencies. That needs uv, and api.osv.dev; one of them is not to be had here.

audit:
	@$(ASKED) || { echo "$(UNKNOWN)" >&2; exit 1; }
	@$(AUDIT) $(ARGS)

weaknesses:
	@if $(ASKED); then $(AUDIT); else echo "$(UNKNOWN)" >&2; fi

autobahn: installed-test
	@$(CACHED) tests/protocol/autobahn.py --all

bench: installed-test
	@exec $(CACHED) -m bench $(ARGS)

# Real processes, real faults, and a checker that sees what clients saw: docs/guarantee.md.
campaign: installed-test
	@exec $(RUN) -m tests.campaign $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(NODES),--nodes $(NODES)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(MUTATE),--mutate $(MUTATE)) $(ARGS)

lock:
	@$(LOCK) --group dev pyproject.toml -o requirements/dev.txt
	@$(LOCK) --group dev --group test --group bench -c requirements/dev.txt pyproject.toml -o requirements/test.txt

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* gateway/protocol/wire_pb2.py*

# Two halves at once, as most of the time goes into reading the index: the lists are complete and leave pip no choice.
# requirements/X.txt is installed when $(VENV)/X.txt is a copy of it. All that dev has is in test, in the same version.
installed-%: $(VENV)/made
	@cmp -s requirements/$*.txt $(VENV)/$*.txt || { \
		echo "Installing requirements/$*.txt into $(VENV) ..." >&2; \
		rm -f $(VENV)/dev.txt $(VENV)/test.txt; \
		awk -v half=$(VENV)/half- '/^[^ #]/ { n++ } { print > (half n % 2) }' requirements/$*.txt; \
		$(INSTALL) -r $(VENV)/half-0 >&2 & \
		$(INSTALL) -r $(VENV)/half-1 >&2 && wait $$! || exit 1; \
		cp requirements/$*.txt $(VENV)/; \
		cp requirements/dev.txt $(VENV)/; \
		rm -f $(VENV)/half-0 $(VENV)/half-1; \
	}
	@[ gateway/protocol/wire_pb2.py -nt gateway/protocol/wire.proto ] && [ gateway/protocol/wire_pb2.py -nt $(BIN)/protoc ] \
		|| $(RUN) -m gateway.protocol.build >&2

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Wardgate needs Python 3.11 or later, as '$(PYTHON)'. Another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' has no venv or ensurepip. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV) ..." >&2
	@$(PYTHON) -m venv --clear $(VENV) >&2
	@touch $@
