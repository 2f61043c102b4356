# Everything here needs python3 (3.11 or newer) and make, nothing else: no root, no PostgreSQL, no uv (but for `make lock`).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-long clients check format bench docs lock clean

demo: $(VENV)/.runtime
	@$(BIN)/dwctl-trio demo

# Side by side, but for the tests whose bounds are times and whose processes fill the machine by themselves.
test: $(VENV)/.development
	$(BIN)/pytest -q -n 2 --ignore tests/acceptance
	$(BIN)/pytest -q tests/acceptance

test-long: $(VENV)/.development
	$(BIN)/pytest -q -m long

# JavaScript clients; needs node (20 or newer) and npm, which fetches them.
clients: $(VENV)/.development
	$(BIN)/python -m tests.clients.node

check: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.development
	$(BIN)/python -m benchmarks --effort 0.25

docs: $(VENV)/.development
	$(BIN)/python -m docs.generator

# Names, versions and hashes only. Needs uv, a development tool.
lock:
	uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate pyproject.toml -o requirements/runtime.txt
	uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate pyproject.toml --extra tracing --group dev -o requirements/development.txt
	printf 'hatchling\neditables\n' | uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate - -o requirements/build.txt

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/runtime.txt requirements/build.txt pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/build.txt -r requirements/runtime.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.development: $(VENV)/.runtime requirements/development.txt
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/development.txt
	@touch $@
