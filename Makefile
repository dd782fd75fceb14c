# Two commands for a fresh machine with Python 3.11 or later; each makes its own environment.
#   make demo   trains, evaluates and uses a small model (two to three minutes)
#   make test   runs the checks and the tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One compute thread to a process: tests run side by side, and threads that wait would spin.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint format benchmark clean

demo: $(VENV)/demo.stamp
	rm -rf demo
	$(BIN)/mobilevit demo --out demo

test: lint
	$(BIN)/pytest -n auto --cov --cov-report=term:skip-covered $(PYTEST_OPTIONS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/dev.stamp
	$(BIN)/pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) demo

$(VENV)/demo.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/dev.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@
