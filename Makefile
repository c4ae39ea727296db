# make stream: the first result; make test: the quick tests; make check: what CI does, with the tests of processes, the
# trainings of the papers and the long runs; make bench: how fast; make bench-offload: the link to the cloud;
# make bench-live: a live session; make bench-serve: the HTTP service; make docs: the documentation, in build/docs.
# PIP_FLAGS reaches pip, for example PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu".
PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
BIN := .venv/bin
ROOMS := policies envs models stream experiments
LINKS := $(ROOMS:%=build/links/eex/%)

.PHONY: stream test check format lint types docs bench bench-offload bench-live bench-serve clean

stream: .venv/ready
	$(BIN)/eex-stream --compare ucb,fixed,fixed:p_tar=0.95 $(ARGS)

# two workers, which take tests from each other, on one thread each (tests/conftest.py)
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --durations=20

test: .venv/ready
	$(PYTEST) -m "not process and not paper and not soak" $(ARGS)

check: format lint types docs
	$(PYTEST) $(ARGS)

format: .venv/ready
	$(BIN)/ruff format --check .

lint: .venv/ready
	$(BIN)/ruff check .

types: .venv/ready $(LINKS)
	$(BIN)/mypy

# warnings are errors; nothing is loaded from elsewhere
docs: .venv/ready
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs

bench: .venv/ready
	$(BIN)/python -m eex.experiments.bench.engine $(ARGS)
	$(BIN)/python -m eex.experiments.bench.policies
	$(BIN)/python -m eex.experiments.bench.envs

bench-offload: .venv/ready
	$(BIN)/python -m eex.experiments.bench.offload $(ARGS)

bench-live: .venv/ready
	$(BIN)/python -m eex.experiments.bench.live $(ARGS)

bench-serve: .venv/ready
	$(BIN)/python -m eex.experiments.bench.serve $(ARGS)

clean:
	rm -rf .venv build docs/reference *.egg-info

# mypy wants the package eex as a folder; the rooms stand at the root (see ARCHITECTURE.md)
build/links/eex/%:
	@mkdir -p build/links/eex
	@ln -sfn ../../../$* $@

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eex needs Python 3.11 or newer (make PYTHON=python3.11)")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
