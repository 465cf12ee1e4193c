# Two commands: `make serve` and `make test`. Both make .venv when it is missing or out of date.
#
#   PORT=8000            port of the server            MODEL=smollm2-135m   directory, .gguf file or name
#   PYTHON=python3.12    Python for a new .venv        PIP_*                passed to pip
#   ARGS                 more for the server, or for pytest

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
MODEL ?= smollm2-135m
ARGS ?=
# A file stays with one process, so that what its tests share is started once.
PARALLEL := -n logical --dist loadfile
SOURCES := pyproject.toml setup.py tools/environment.sh $(wildcard csrc/*)
export VENV

.PHONY: help serve test suite coverage lint asan tsan format protos docs clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.ready-serve ## Install, fetch the default model and serve it (PORT, MODEL, ARGS)
	@echo "==> Starting the server; Ctrl-C stops it"
	@exec $(BIN)/millpond serve "$(MODEL)" --port "$(PORT)" $(ARGS)

test: lint suite ## Check everything and run the default tests (a few minutes)

suite: $(VENV)/.ready-dev ## Run the default tests, a file at a time on each core
	@echo "==> Tests"
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

coverage: $(VENV)/.ready-dev ## Run the default tests and show which lines and branches they reach
	@$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term $(ARGS)

lint: $(VENV)/.ready-dev ## Check style, types, layers, sizes and generated pages
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet .
	@echo "==> mypy and import-linter"
	@$(BIN)/mypy & mypy=$$!; \
	$(BIN)/lint-imports --no-cache --no-logo > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; wait; exit 1; }; \
	wait $$mypy
	@echo "==> sizes of files and functions"
	@$(BIN)/python tools/sizes.py
	@echo "==> generated reference pages"
	@$(BIN)/python tools/reference.py --check
	@echo "==> generated messages"
	@$(BIN)/python tools/protos.py --check

asan: $(VENV)/.ready-dev ## Test the native ops built with AddressSanitizer
	@tools/sanitize.sh address $(ARGS)

tsan: $(VENV)/.ready-dev ## Test the native ops built with ThreadSanitizer
	@tools/sanitize.sh thread $(ARGS)

format: $(VENV)/.ready-dev ## Sort imports and mend what ruff can mend
	@$(BIN)/ruff check --fix .

protos: $(VENV)/.ready-dev ## Write src/millpond/serve/proto/ from proto/
	@$(BIN)/python tools/protos.py

docs: $(VENV)/.ready-dev ## Write docs/reference/ from the code
	@$(BIN)/python tools/reference.py

clean: ## Remove .venv and what the tools left; models in the cache stay
	@rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage src/*.egg-info
	@rm -f src/millpond/inference/ops/_native*.so
	@find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready-serve: $(SOURCES)
	@tools/environment.sh serve
	@touch $@

$(VENV)/.ready-dev: $(SOURCES)
	@tools/environment.sh dev
	@touch $(VENV)/.ready-serve $@
