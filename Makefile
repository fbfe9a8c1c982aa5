SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install install-dev train test test-all test-lowest lint format types docs bench bench-quick clean

help:  ## Print the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp is newer than the dependency list that it was installed from: nothing is installed twice, and a changed
# pyproject.toml is noticed.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "selfdistill needs Python >= 3.11; $(PYTHON) is older: make PYTHON=python3.11 …" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing selfdistill and what it needs into $(VENV): about 6 GB, most of it torch; 3 to 6 minutes, in which pip is silent"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	@echo "installing what tests, checks, docs and notebooks need into $(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## Make .venv and install the package

install-dev: $(VENV)/.installed-dev  ## Add what tests and checks need

train: $(VENV)/.installed  ## Train BYOL on the embedded digits; make train ARGS="method=ema_teacher divergence=kl"
	$(BIN)/python -m src.train method=byol_like $(ARGS)

lint: $(VENV)/.installed-dev  ## Lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev  ## Format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev  ## Type check
	$(BIN)/mypy

test: $(VENV)/.installed-dev lint types  ## Lint, types and the quick tests (about 12 minutes on two cores)
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev lint types  ## Every test
	$(BIN)/python -m pytest -n 2 $(ARGS)

docs: $(VENV)/.installed-dev  ## The site, strictly, into site/ (opens from the disk; with a search: .venv/bin/mkdocs serve)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The oldest versions that pyproject.toml allows, in an environment of their own.
LOWEST := .venv-lowest
$(LOWEST)/.installed: pyproject.toml .ci/lowest.py
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[dev]'
	@touch $@

test-lowest: $(LOWEST)/.installed  ## The quick tests with the oldest versions that are allowed
	$(LOWEST)/bin/python -m pytest -n 2 -m "not slow" $(ARGS)

# lightly alone is installed; torch and the rest are those of .venv.
PEERS := .venv-peers
$(PEERS)/.installed: pyproject.toml | $(VENV)/.installed-dev
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv --without-pip $(PEERS)
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  peers=$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  echo "import site; site.addsitedir('$$site')" > $$peers/selfdistill-dev.pth
	$(BIN)/python -m pip --python $(PEERS)/bin/python install --quiet --disable-pip-version-check --no-deps lightly lightly_utils
	@touch $@

bench: $(PEERS)/.installed  ## Speed and memory beside lightly, written into benchmarks/RESULTS.md
	OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/peers.py $(ARGS)

bench-quick: $(PEERS)/.installed  ## The same in under three minutes, compared with the committed ratios
	OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/peers.py --quick $(ARGS)

clean:  ## Remove caches (never outputs/)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
