# Everything runs in .venv, which the first command makes. Needed: Python 3.11 or newer, and make.
PYTHON  ?= python3
WORKERS ?= 2
SECONDS ?= 600
SEED    ?=
AGAIN   ?=
EVAL    ?=
# AGAIN=1 runs those tests once more that failed the last time.
LAST    := $(if $(AGAIN),--last-failed --last-failed-no-failures none)
# Only a run that came to its end (status 1) knows what failed.
FORGET  := { status=$$?; test $$status = 1 || rm -f .pytest_cache/v/cache/lastfailed; exit $$status; }
VENV    := .venv
RUN     := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults lint bench quality soak clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.ready  ## Replay real conversations on real servers and show what the memory keeps
	@$(RUN)/contract-memory demo

test: $(VENV)/.ready  ## Run the suite on a real Redis and PostgreSQL
	@echo "-- tests, on $(WORKERS) workers, each with its own Redis and PostgreSQL"
	@$(RUN)/pytest -n $(WORKERS) --dist loadfile $(LAST) --ignore tests/faults || $(FORGET)

test-faults: $(VENV)/.ready  ## Run the fault tests, and those that take long: servers and processes killed, stopped, raced and timed
	@echo "-- fault tests, on $(WORKERS) workers; servers of their own are killed"
	@$(RUN)/pytest -n $(WORKERS) --dist loadfile $(LAST) tests/faults || $(FORGET)

lint: $(VENV)/.ready  ## Check style and types
	@$(RUN)/ruff format --check . && $(RUN)/ruff check . && $(RUN)/mypy

bench: $(VENV)/.ready  ## Measure what each call costs, as a ratio to a PING
	@$(RUN)/python benchmarks/bench.py

quality: $(VENV)/.ready  ## Measure what summaries keep of the shipped conversations, or with the score in EVAL=DIR
ifeq ($(EVAL),)
	@$(RUN)/python benchmarks/own_score.py
else
	@test -f "$(EVAL)/score.py" || { echo "EVAL names a folder with a score.py. Try: make quality EVAL=DIR"; exit 1; }
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(RUN)/uv sync --quiet --frozen --inexact --extra dev --extra quality
	@PYTHONPATH=benchmarks $(RUN)/python "$(EVAL)/score.py" retention:summarize
	@$(RUN)/python benchmarks/recall_quality.py "$(EVAL)"
endif

soak: $(VENV)/.ready  ## Harm servers and processes under load for SECONDS=600, with SEED= to repeat a run
	@$(RUN)/python tests/faults/soak.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

clean:  ## Remove what these commands made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

$(VENV)/.ready: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=python3.12 <command>"; exit 1; }
	@echo "-- making $(VENV) and installing the locked packages (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(RUN)/uv sync --quiet --frozen --inexact --compile-bytecode --extra dev
	@touch $@
