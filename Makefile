# make demo | test | test-all | check | bench. Each makes .venv by itself when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers fill two cores; a file's tests stay on one, which builds its fixtures once. Ranks have one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 20 --durations-min 5
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all check bench clean
.DELETE_ON_ERROR:

$(VENV)/installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 13) else f"megadna needs Python 3.10 to 3.12, {sys.executable} is {v[0]}.{v[1]}; say make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .[downstream]
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) -e .[test]
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e .[dev]
	@touch $@

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

test: $(VENV)/installed-test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/installed-test
	$(PYTEST) -m slow

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

bench: $(VENV)/installed-test
	for script in tools/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) demo build *.egg-info
