# Watershed: `make demo` and `make ui` are the two commands; `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip
INSTALLED := .venv/.installed

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(INSTALLED) ## install the locked packages into .venv

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v.major}.{v.minor} found, 3.11 or newer needed: make install PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet 'uv>=0.9'
	@echo "installing the locked packages into .venv ..."
	@$(UV) sync --quiet --python $(BIN)/python requirements.lock
	@$(UV) install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

reinstall: ## install again from nothing, for a damaged .venv
	rm -rf .venv
	@$(MAKE) --no-print-directory install

lock: ## renew requirements.lock from pyproject.toml
	$(UV) compile pyproject.toml --extra demo --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --no-header --quiet \
		--python $(BIN)/python --output-file requirements.lock

demo: $(INSTALLED) ## fill the demo's source systems, build everything new, say what exists
	@$(BIN)/watershed demo

build: $(INSTALLED) ## build everything new from the configured sources
	@$(BIN)/watershed build

reload: $(INSTALLED) ## load a part of a source again: table=retail_db.transactions from=2017-03-01 to=2017-04-01
	@$(BIN)/watershed reload $(table) $(if $(from),--from "$(from)") $(if $(to),--to "$(to)")

follow: $(INSTALLED) ## keep landing a stream until stopped: topic=<system>.<entity>
	@$(BIN)/watershed follow $(topic)

stream: $(INSTALLED) ## score payments as they are made, and land them, until stopped
	@$(BIN)/watershed stream

ui: $(INSTALLED) ## open the graph in Dagster
	@$(BIN)/watershed ui

sql: $(INSTALLED) ## a DuckDB shell on the warehouse; q="select ..." prints rows, format=csv for a pipe
	@$(BIN)/watershed sql $(if $(format),--format $(format)) $(if $(q),-- "$$q")

settings: $(INSTALLED) ## every setting, its value and what it means
	@$(BIN)/watershed settings

test: $(INSTALLED) ## unit and integration tests; no server needed
	@$(BIN)/pytest tests --ignore=tests/services

services: $(INSTALLED) ## tests against real servers, which it starts
	@.ci/servers.py $(BIN)/pytest tests/services

torture: $(INSTALLED) ## kill loaders 2,000 times per kind of source and count the rows
	@.ci/servers.py --only postgresql --only kafka $(BIN)/python -m tests.torture --kills 2000

lint: $(INSTALLED) ## ruff, mypy, sqlfluff, dg check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint dbt_project/models dbt_project/tests
	$(BIN)/dg check yaml --no-validate-requirements
	$(BIN)/watershed check

bench: $(INSTALLED) ## the benchmarks, as ratios
	@$(BIN)/python -m benchmarks

bench-ingestion: $(INSTALLED) ## landing against dlt and the machine's limit, on a PostgreSQL of its own
	@$(UV) install --quiet --python $(BIN)/python --constraint requirements.lock --no-build-isolation --editable '.[bench]'
	@.ci/servers.py --only postgresql $(BIN)/python -m benchmarks.ingestion $(cases)

clean: ## delete everything built (the data folder), keep .venv and .env
	rm -rf data

.PHONY: help install reinstall lock demo build reload follow stream ui sql settings test services torture lint bench bench-ingestion clean
