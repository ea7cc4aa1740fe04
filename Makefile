# make demo: install and run the main job.  make test: install and pass the tests.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test test-fast check audit sbom clean

demo: $(VENV)/.installed
	$(BIN)/python -m lightning_dp demo

test: $(VENV)/.installed-dev check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# While working: files of a few seconds each, 2 minutes in all.
test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[timeseries]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

# For a schedule, such as a nightly job: known holes in what constraints.txt pins. Asks the index that pip asks.
audit: $(VENV)/.installed
	$(BIN)/python -m pip install -q pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# What is installed, as CycloneDX: sbom.json.
sbom: $(VENV)/.installed
	$(BIN)/python -m pip install -q cyclonedx-bom
	$(BIN)/cyclonedx-py environment $(VENV) --output-format JSON --output-file sbom.json

clean:
	rm -rf $(VENV) build *.egg-info
