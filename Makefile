# For a fresh machine with Python 3.11 or later; each command makes the environment it needs.
#   make demo        trains, evaluates and uses a small model (two to three minutes)
#   make test        all checks and all tests (a quarter of an hour on two cores)
#   make test-fast   the checks, and the tests that take no training, export or browser (two minutes)
#   make docs        the documentation as pages, with the API reference, in site/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One compute thread per process: tests run side by side, and threads that wait would spin.
export OMP_NUM_THREADS ?= 1
# Tests of a group stay in one process, and the longest groups come first: see conftest.py.
PYTEST := $(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-fast coverage docs lint format benchmark clean

demo: $(VENV)/demo.stamp
	rm -rf demo
	$(BIN)/mobilevit demo --out demo

test: lint
	$(PYTEST) $(PYTEST_OPTIONS)

test-fast: lint
	$(PYTEST) -m 'not slow and not browser and not export' $(PYTEST_OPTIONS)

coverage: $(VENV)/dev.stamp
	$(PYTEST) --cov --cov-report=term:skip-covered $(PYTEST_OPTIONS)

docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

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
	rm -rf $(VENV) demo site

$(VENV)/demo.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/dev.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

$(VENV)/docs.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[docs]'
	touch $@
