# SPDX-License-Identifier: BSD-3-Clause
# Two commands on a fresh machine with Python (>= 3.11) and make: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help:  ## List the commands
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(INSTALLED)  ## Pre-train a small BLIP on drawn scenes, then caption and match new ones
	$(BIN)/blip-hf demo --output-dir runs/demo

test: lint  ## Lint, then run the tests and the doctests
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)  ## Repair style and formatting in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## Time every job beside its rivals at base size (hours on a CPU); results in benchmarks/results
	$(BIN)/python -m benchmarks --size base

clean:  ## Remove caches and build products; .venv and runs stay
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an installation that was cut short starts again.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("blip_hf needs Python 3.11 or newer, got %d.%d: name one, as in make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[demo,test]"
	touch $@
