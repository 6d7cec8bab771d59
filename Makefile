# make demo       install into .venv, then the main job on real digits, with its report
# make test       install, lint, types, layers and all tests but the slow ones (CI runs this)
# make test-slow  the tests that take minutes
# make bench      every benchmark; each prints a table and one JSON line a figure
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: install demo test test-slow lint bench docs browser database clean

install: .venv/installed

# Runs again only when what is to be installed changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shiftlab needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/shiftlab sweep --config jobs/demo.yaml

test: install browser database lint
	$(BIN)/python -m pytest -m 'not slow and not gpu' -n 2 --dist loadfile

test-slow: install browser database
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The report is opened in a real browser: take the machine's, or Debian's where we may install it.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	  || echo 'no chromium found: the tests that open report.html will be skipped'

# Studies are kept in a real PostgreSQL that the tests start and kill: take the machine's, or Debian's.
database:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { [ "$$(id -u)" = 0 ] \
	  && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq postgresql >/dev/null; } \
	  || echo 'no PostgreSQL found: the tests that need one will be skipped'

bench: install
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
