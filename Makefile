# make demo   a virtual environment, the installation, and the first run from web pages to an assistant
# make test   the default test suite (sets up what is missing)
# make slow   the tests that take longer; make check: lint and types
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow check clean

demo: $(VENV)/.installed
	$(BIN)/luyen run quickstart
	@echo 'to write luyen instead of $(BIN)/luyen: . $(BIN)/activate'

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --timeout 3600

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Luyện needs Python 3.11 or newer: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): about a minute'
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(READY): $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
