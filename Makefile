# Everything here works on a fresh machine with Python 3.11 or newer and a package index.
#   make run    install into .venv and run the main benchmark on the embedded, simulated data
#   make test   the test suite (minutes);  make test-slow  the long tests too;  make lint  style and types
#   make test-faults  everything that can go wrong, three times in a row; writes docs/reliability.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Thread pools larger than a worker's share of the cores make everything slower, not faster.
export OMP_NUM_THREADS ?= 1
# Test files at a time; 0: one after another, in one process. A worker that dies ends the session, which would hang.
JOBS ?= 2

# How often the fault suite passes over all its rows, and for how long each fuzzer runs in each pass.
PASSES ?= 3
HARNESS_FUZZ_SECONDS ?= 120

.PHONY: run install test test-slow test-faults lint format clean

run: $(READY)
	$(BIN)/harness run benchmarks/cross_site.yaml

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --max-worker-restart=0 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --max-worker-restart=0 --dist loadfile --no-loadscope-reorder

test-faults: export HARNESS_RELIABILITY := $(CURDIR)/.reliability.jsonl
test-faults: export HARNESS_FUZZ_SECONDS := $(HARNESS_FUZZ_SECONDS)
test-faults: $(READY)
	rm -f $(HARNESS_RELIABILITY)
	for pass in $$(seq $(PASSES)); do $(BIN)/python -m pytest tests/faults tests/fuzz || exit 1; done
	$(BIN)/python tests/support/reliability.py $(HARNESS_RELIABILITY) docs/reliability.md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
