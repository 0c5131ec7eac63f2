# `make` alone lists what there is. Every target makes .venv first, when it is missing or out of date.

VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(VENV)/uv/bin/uv
UV_VERSION := uv>=0.5,<1
INSTALLED := $(VENV)/.installed

# PostgreSQL 15, the oldest that is tested; other versions: make compat POSTGRES_BIN=/usr/lib/postgresql/16/bin
POSTGRES_BIN ?= /usr/lib/postgresql/15/bin
# Which tests `make compat` takes: the fast ones; TIERS='not slow' for every matrix and outage.
TIERS ?= not slow and not thorough
# The Redis that is tested beside the wheel's Valkey: apt install redis-server, or REDIS_SERVER=FILE.
REDIS_SERVER ?= /usr/bin/redis-server
ROUNDS ?= 200
# Most tests wait for servers: four workers, each with servers of its own, on two cores. WORKERS= for one.
WORKERS ?= -n 4 --dist worksteal
CODE := streamer consumers tests

# Images of containers often set it; every process of a test would compile again all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# What a server older than the wheel's can run: of the integration tests those about Postgres, and the whole walk.
COMPAT_TESTS := tests/integration/test_capture.py tests/integration/test_capture_stops.py \
	tests/integration/test_capture_start.py \
	$(addprefix tests/integration/test_,apply.py apply_hazards.py apply_places.py target_postgres.py doctor.py sessions.py) \
	tests/integration/test_operations.py tests/integration/test_rows_postgres.py \
	tests/acceptance/test_walk.py tests/acceptance/test_faults.py
# These ask the server for what came later: pg_logical_emit_message's flush (17), idle_replication_slot_timeout (18).
COMPAT_NOT := tests/integration/test_rows_postgres.py::test_every_other_message_is_read \
	tests/integration/test_doctor.py::test_wal_level_free_slots_and_senders

COMPAT_REDIS_TESTS := $(addprefix tests/integration/test_redis_,watch.py signs.py connection.py reread.py gaps.py \
	capture.py rights.py target_rights.py cluster.py) tests/integration/test_doctor_redis.py

.DELETE_ON_ERROR:
.PHONY: help install demo test thorough slow crash crash-redis crash-process bench lint format compat lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

install: $(INSTALLED) ## make .venv, and nothing else

# The environment, without pip; its interpreter is the first that is new enough.
$(PYTHON):
	@set -e; for name in python3.11 python3 python3.13 python3.12 python; do \
		path=$$(command -v $$name) || continue; \
		"$$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "making $(VENV) with $$path"; \
		exec "$$path" -m venv --without-pip $(VENV); \
	done; echo "error: no Python 3.11 or later on the PATH" >&2; exit 1

# uv lives in a folder of its own, since the environment holds exactly what requirements.lock names. It comes by
# pip: one in a venv, or where ensurepip is missing (Debian without python3-venv) the one beside the interpreter.
$(UV): | $(PYTHON)
	@set -e; base=$$($(PYTHON) -c 'import sys; print(sys._base_executable)'); \
	rm -rf $(VENV)/uv; \
	if "$$base" -m venv $(VENV)/uv >/dev/null 2>&1; then $(VENV)/uv/bin/python -m pip install --quiet '$(UV_VERSION)'; \
	elif "$$base" -m pip --version >/dev/null 2>&1; then \
		rm -rf $(VENV)/uv; "$$base" -m pip install --quiet --target $(VENV)/uv '$(UV_VERSION)'; \
	else echo "error: $$base has neither ensurepip nor pip; install one (Debian: apt install python3-venv)" >&2; \
		rm -rf $(VENV)/uv; exit 1; fi

$(INSTALLED): requirements.lock pyproject.toml | $(PYTHON) $(UV)
	@echo "installing what requirements.lock names"
	@$(UV) pip sync --quiet --python $(PYTHON) --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(PYTHON) --no-deps --editable .
	@touch $@

demo: install ## two Postgres, a Kafka, a shop at work, two kills, a verdict; KEEP=1 leaves it running
	@$(VENV)/bin/tailrace demo $(if $(filter-out 0,$(KEEP)),--keep)

test: install ## the fast suite on real servers, some 5 minutes on 2 cores
	$(PYTHON) -m pytest $(WORKERS)

thorough: install ## the whole matrix on real servers, beside what `make test` has; before a release
	$(PYTHON) -m pytest $(WORKERS) -m 'thorough and not slow' --hypothesis-profile others
	$(PYTHON) -m pytest $(WORKERS) -m 'not thorough and not slow' --hypothesis-profile others tests/property

slow: install ## the long tests: outages of a minute, 5 million rows, cut lines
	$(PYTHON) -m pytest -m slow

crash: install ## kill -9 of every part again and again: make crash ROUNDS=200 [SEED=7]
	$(PYTHON) -m tests.crash --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

crash-redis: install ## faults of a Redis source under 20,000 commands a second: make crash-redis ROUNDS=50 [SEED=7]
	$(PYTHON) -m tests.crash.redis --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

crash-process: install ## workers of processors killed, joined and stopped under load: make crash-process ROUNDS=50 [SEED=7]
	$(PYTHON) -m tests.crash.process --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

bench: install ## the figures of docs/benchmarks.md, on this machine
	$(PYTHON) -m tests.bench

lint: install ## ruff, mypy --strict, import-linter
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/ruff check $(CODE)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: install ## ruff's formatting and its safe corrections
	$(VENV)/bin/ruff format $(CODE)
	$(VENV)/bin/ruff check --fix $(CODE)

compat: install ## an older PostgreSQL as source and as target (15; POSTGRES_BIN=DIR for another), Redis 7 as a source
	@test -x $(POSTGRES_BIN)/initdb || { \
		echo "error: no initdb in $(POSTGRES_BIN); apt install postgresql-15, or set POSTGRES_BIN" >&2; exit 1; }
	$(PYTHON) -m pytest $(WORKERS) -m '$(TIERS)' $(COMPAT_TESTS) $(addprefix --deselect ,$(COMPAT_NOT)) --postgres-bin $(POSTGRES_BIN)
	@test -x $(REDIS_SERVER) || { \
		echo "error: no $(REDIS_SERVER); apt install redis-server, or set REDIS_SERVER" >&2; exit 1; }
	$(PYTHON) -m pytest $(WORKERS) -m '$(TIERS)' $(COMPAT_REDIS_TESTS) --redis-server $(REDIS_SERVER)

# Two files from pyproject.toml: everything, and what a process of Tailrace needs to run (the Dockerfile's).
# Both name versions and hashes, and no index.
COMPILE = env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" pyproject.toml
lock: $(UV) ## write requirements.lock and requirements-run.lock anew
	$(COMPILE) --extra embeddings --extra rocksdb --extra sandbox --extra dev --output-file requirements.lock
	$(COMPILE) --extra rocksdb --constraint requirements.lock --no-annotate --output-file requirements-run.lock

clean: ## remove .venv and every cache of the tools; data of a run (.tailrace) stays
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find streamer consumers tests -name __pycache__ -type d -prune -exec rm -rf {} +
