# SPDX-License-Identifier: BSD-3-Clause
# Two commands on a fresh machine with Python (>= 3.11) and make: `make demo` and `make test`.

PYTHON ?= python3
# Processes that the tests run in, with one thread each.
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench clean

help:  ## List the commands
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(INSTALLED)  ## Pre-train a small BLIP on drawn scenes, then caption and match new images
	$(BIN)/blip-hf demo --output_dir runs/demo --overwrite

test: lint  ## Check the style, then run the tests and doctests (WORKERS=2 processes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(INSTALLED)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Fix style and formatting in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## Build the documentation site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(INSTALLED)  ## Benchmark each job against other packages at base size (hours on a CPU)
	$(BIN)/python -m benchmarks --size base

clean:  ## Remove caches and build products, but not .venv and runs
	rm -rf build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted installation starts again.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("blip_hf needs Python 3.11 or newer, got %d.%d: choose another, as in make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
	touch $@
