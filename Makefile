# `make demo` and `make test` are all that a new user needs: Python 3.10 or newer, and nothing else.
# Another interpreter or folder: make test PYTHON=python3.12 VENV=/some/folder. Some tests only: make test ARGS="-k happo".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
EXTRAS ?= envs,export,zoo,tests
BIN := $(VENV)/bin
# One process per core; the tests of a file share trained models, so they stay together
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint docs format clean

help: ## Show these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 16

demo: $(INSTALLED) ## Train HAPPO for a minute or two, and draw its learning curve and the trained team
	$(BIN)/python zoo/demo.py $(ARGS)

test: $(INSTALLED) ## Run the tests
	$(PYTEST) $(ARGS)

slow: $(INSTALLED) ## Run the slow tests
	$(PYTEST) -m slow $(ARGS)

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED) ## Build the documentation, docs/_build/html (Python 3.11 or newer)
	@$(BIN)/python -c 'import furo, myst_parser, sphinx, sphinx_copybutton' 2>/dev/null || \
		$(BIN)/python -m pip install --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

format: $(INSTALLED) ## Sort imports and format
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) build demo dist docs/_build sb3_happo.egg-info .mypy_cache .pytest_cache .ruff_cache
	find sb3_happo tests zoo -name __pycache__ -type d -prune -exec rm -rf {} +

# Installs again only when the packages to install have changed
$(INSTALLED): setup.py constraints.txt sb3_happo/version.py
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@
