# Every target makes what it needs, in .venv beside this file; `make help` lists them.
# Pass options to the program behind a target with ARGS: make demo ARGS="--seconds 8 --json"

SHELL := /bin/bash
.DEFAULT_GOAL := help
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin

# The first interpreter that is new enough and can make a virtual environment; PYTHON=/path/to/python overrides it.
# Each is run, not only looked up: version managers leave commands on the path that only print an error.
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3)
ABLE := import sys; assert sys.version_info >= (3, 11); import venv, ensurepip
NEW_ENOUGH := import sys; assert sys.version_info >= (3, 11)

# An environment whose interpreter is gone (an upgrade of the system's Python) is made anew.
ifneq ($(shell test -x $(BIN)/python && echo works),works)
.PHONY: $(VENV)/.made
endif

# uv takes a few seconds where pip takes the better part of a minute. pip steps in where uv cannot be had or
# cannot reach the index (uv does not read pip's configuration files; the machine's own certificates it is told to).
define install
@echo "Installing $(1) into $(VENV) (once; a few seconds to a minute)" >&2
@UV_LINK_MODE=copy UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --python $(BIN)/python $(2) 2>$(VENV)/uv.log \
	|| { echo "uv could not (see $(VENV)/uv.log); trying pip" >&2; $(BIN)/python -m pip install --quiet $(2); }
endef

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1\t/' \
		| while IFS=$$'\t' read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

.PHONY: demo
demo: $(VENV)/.runtime ## watch messages travel from API to user; ARGS="--fault none", ARGS="--help", …
	@$(BIN)/rtobs demo $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## run the tests; those that need a broker are skipped where it does not answer
	$(BIN)/python -m pytest $(ARGS)

.PHONY: quick
quick: $(VENV)/.dev ## run the tests that need no broker and take no longer than a few seconds each
	$(BIN)/python -m pytest -m "not slow and not broker and not soak" $(ARGS)

.PHONY: soak
soak: $(VENV)/.dev ## run the long tests that `make test` leaves out
	$(BIN)/python -m pytest -m soak $(ARGS)

.PHONY: check
check: lint types imports ## lint, format, types and import order

.PHONY: lint
lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: types
types: $(VENV)/.dev ## mypy --strict and pyright on src and on tests/typing
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: imports
imports: $(VENV)/.dev ## import-linter: who may import whom
	$(BIN)/lint-imports

.PHONY: bench
bench: $(VENV)/.dev valgrind ## measure what rtobs costs, beside what is claimed; ARGS=--json, ARGS=--write (the page)
	@$(BIN)/python -m tests.bench.run $(ARGS)

.PHONY: bench-peers
bench-peers: $(VENV)/.dev ## measure what others cost for the same hop, each in an environment of its own
	@$(BIN)/python -m tests.bench.peers $(ARGS)

.PHONY: gate
gate: $(VENV)/.dev valgrind ## compare instructions per hop with the recorded ones; fails where one is 5 % higher
	@$(BIN)/python -m tests.bench.gate $(ARGS)

.PHONY: reliability
reliability: $(VENV)/.dev ## run the tests of the promises, soak too, and write docs/reliability.md; ARGS are pytest's
	@$(BIN)/python -m tests.unbreakable.page --run $(ARGS)

.PHONY: valgrind
valgrind: # counts instructions
	@if ! command -v valgrind >/dev/null; then \
		command -v apt-get >/dev/null || { echo "valgrind is not installed, and there is no apt-get" >&2; exit 1; }; \
		root=; [ "$$(id -u)" -eq 0 ] || root="sudo -n"; \
		echo "Installing valgrind (once)" >&2; \
		$$root apt-get update --quiet=2 && $$root env DEBIAN_FRONTEND=noninteractive \
			apt-get install --quiet=2 --yes --no-install-recommends valgrind >/dev/null; \
	fi

.PHONY: brokers
brokers: ## install and start the brokers the tests use (Debian, Ubuntu; says what to do elsewhere)
	@bash examples/stack/brokers.sh

.PHONY: clean
clean: ## remove .venv and everything that tools left behind
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov
	find src tests examples docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# What a target was made from is remembered in empty files inside .venv, so that a second run starts at once.

$(VENV)/.made:
	@python=; for each in $(CANDIDATES); do \
		if "$$each" -c "$(ABLE)" >/dev/null 2>&1; then python="$$each"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		for each in $(CANDIDATES); do \
			if "$$each" -c "$(NEW_ENOUGH)" >/dev/null 2>&1; then \
				echo "$$each cannot make virtual environments: its venv module is missing." >&2; \
				echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
			fi; \
		done; \
		echo "rtobs needs Python 3.11 or newer, and found:" >&2; \
		for each in $(CANDIDATES); do echo "  $$each: $$("$$each" --version 2>&1 | head -n 1)" >&2; done; \
		echo "Install one, or name one: make PYTHON=/path/to/python3.11 …" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)" >&2; \
	"$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --only-binary :all: uv || true
	@touch $@

$(VENV)/.runtime: pyproject.toml $(VENV)/.made
	$(call install,rtobs and its tools,--editable ".[tools]" --group demo)
	@touch $@

# The tests need everything that the demo needs, so one install makes both.
$(VENV)/.dev: pyproject.toml $(VENV)/.made
	$(call install,rtobs with everything its tests and checks need,--editable ".[tools$(comma)prometheus$(comma)slo]" --group dev)
	@touch $(VENV)/.runtime $@

comma := ,
