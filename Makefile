# Watershed: `make demo` and `make ui` are the two commands; `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip
INSTALLED := .venv/.installed
# Python's bytecode cache is kept even where the environment says otherwise: half of a process's start-up.
export PYTHONDONTWRITEBYTECODE :=

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

turbofan: $(INSTALLED) ## run NASA's C-MAPSS engines through predictive maintenance: folder=... set=FD001
	@$(BIN)/watershed turbofan "$(folder)" $(if $(set),--set "$(set)")

reload: $(INSTALLED) ## load a part of a source again: table=retail_db.transactions from=2017-03-01 to=2017-04-01
	@$(BIN)/watershed reload $(table) $(if $(from),--from "$(from)") $(if $(to),--to "$(to)")

follow: $(INSTALLED) ## keep landing a stream until stopped: topic=<system>.<entity>
	@$(BIN)/watershed follow $(topic)

stream: $(INSTALLED) ## score payments and machines as events come, and land them, until stopped; use_case=payments or machines
	@$(BIN)/watershed stream $(use_case)

acknowledge: $(INSTALLED) ## say that somebody takes care of a machine's warning: warning=<id>
	@$(BIN)/watershed acknowledge "$(warning)"

serve: $(INSTALLED) ## answer scores over HTTP until stopped; /openapi.json says how
	@$(BIN)/watershed serve

page: $(INSTALLED) ## the page for the business: a screen for each decision, over what is published
	@$(BIN)/watershed page

ui: $(INSTALLED) ## open the graph in Dagster
	@$(BIN)/watershed ui

sql: $(INSTALLED) ## a DuckDB shell on the warehouse; q="select ..." prints rows, format=csv for a pipe
	@$(BIN)/watershed sql $(if $(format),--format $(format)) $(if $(q),-- "$$q")

releases: $(INSTALLED) ## what was released: the builds that passed every check
	@$(BIN)/watershed releases

rollback: $(INSTALLED) ## put the release before in force, or to=r3
	@$(BIN)/watershed rollback $(if $(to),--to $(to))

rollforward: $(INSTALLED) ## put the release after in force, or to=r3
	@$(BIN)/watershed rollforward $(if $(to),--to $(to))

share: $(INSTALLED) ## copy what is masked of the release in force to where people without further rights may read it
	@$(BIN)/watershed share

roles: $(INSTALLED) ## the SQL that gives each role its rights, where the catalog is PostgreSQL: make roles | psql ...
	@$(BIN)/watershed roles

verify: $(INSTALLED) ## prove that a release's training sets are as released: release=r3
	@$(BIN)/watershed verify $(release)

backup: $(INSTALLED) ## copy the warehouse and its history, also while it is in use: to=/other/disk/backup
	@$(BIN)/watershed backup "$(to)"

restore: $(INSTALLED) ## put a backup into an empty data folder and verify its releases: from=/other/disk/backup
	@$(BIN)/watershed restore "$(from)"

migrate: $(INSTALLED) ## bring the catalog of an older DuckLake to this version
	@$(BIN)/watershed migrate

rebuild: $(INSTALLED) ## build a release's training sets again from raw, with its code, and compare: release=r3
	@$(BIN)/watershed rebuild $(release)

diff: $(INSTALLED) ## what differs between releases: from=r1 to=r2 (or now); table=train_x; format=markdown
	@$(BIN)/watershed diff $(from) $(or $(to),now) $(if $(table),--table $(table)) $(if $(format),--format $(format))

alerts: $(INSTALLED) ## what is wrong now, what it means and what to do
	@$(BIN)/watershed alerts

lineage: $(INSTALLED) ## where a table or column comes from: of=features.feat_x.amount; down=1 what it touches; format=svg
	@$(BIN)/watershed lineage $(of) $(if $(down),--down) $(if $(format),--format $(format))

models: $(INSTALLED) ## the trained models: which is in force, which waits for its trial
	@$(BIN)/watershed models

promote: $(INSTALLED) ## put a model in force at once: model=<name> reason="why"
	@$(BIN)/watershed promote "$(model)" --reason "$(reason)"

demote: $(INSTALLED) ## put the model before back in force: use_case=fraud_detection reason="why"; kind=pump
	@$(BIN)/watershed demote "$(use_case)" --reason "$(reason)" $(if $(kind),--kind "$(kind)")

trace: $(INSTALLED) ## from a prediction to model, training set and source rows: table=payment_scores key=transaction_id=17
	@$(BIN)/watershed trace "$(table)" "$(key)"

mlflow: $(INSTALLED) .venv-mlflow/.installed ## MLflow's own page on the registry, from an environment of its own; port=5000
	@url=$$($(BIN)/python -c 'from orchestration.settings import load_settings; print(load_settings().mlflow_url.get_secret_value())') || exit 1; \
	case "$$url" in \
	http*) echo "WATERSHED_MLFLOW_URL names a server: its own page shows the registry" ;; \
	*) MLFLOW_BACKEND_STORE_URI="$$url" .venv-mlflow/bin/mlflow ui --host 127.0.0.1 --port $(or $(port),5000) ;; \
	esac

# Of the version whose client is locked. MLflow's server needs older packages than ours.
.venv-mlflow/.installed: requirements.lock
	@echo "installing MLflow's server into .venv-mlflow ..."
	@$(PYTHON) -m venv --clear .venv-mlflow
	@.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check "mlflow==$$(sed -n 's/^mlflow-skinny==\([0-9.]*\).*/\1/p' requirements.lock)"
	@touch $@

forget: $(INSTALLED) ## forget a person, everywhere: person=customer_id=431; dry=1 only says what would go
	@$(BIN)/watershed forget $(subst =, ,$(person)) $(if $(dry),--dry-run)

settings: $(INSTALLED) ## every setting, its value and what it means
	@$(BIN)/watershed settings

test: $(INSTALLED) ## unit and integration tests; no server needed
	@$(BIN)/pytest tests --ignore=tests/services --numprocesses auto --maxprocesses 4 --no-loadscope-reorder

services: $(INSTALLED) ## tests against real servers, which it starts
	@.ci/servers.py $(BIN)/pytest tests/services

torture: $(INSTALLED) ## kill loaders 2,000 times per kind of source; then eight readers beside writers for an hour
	@.ci/servers.py --only postgresql --only kafka $(BIN)/python -m tests.torture --kills 2000
	@$(BIN)/python -m tests.torture.readers --minutes 60

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

.PHONY: help install reinstall lock demo build turbofan reload follow stream acknowledge serve page ui sql releases rollback rollforward share roles verify backup restore migrate rebuild diff alerts lineage models promote demote trace mlflow forget settings test services torture lint bench bench-ingestion clean
