# Two commands: `make run` shows the main job on the embedded models, `make test` runs the tests.
# Each sets up what it needs in .venv, from the package index alone. Needs Python >= 3.11, make, and a JDK >= 17.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out

export PYSPARK_PYTHON := $(abspath $(BIN)/python)
export PYSPARK_DRIVER_PYTHON := $(abspath $(BIN)/python)

SUBMIT := $(BIN)/spark-submit --master 'local[2]' --conf spark.ui.enabled=false --conf spark.ui.showConsoleProgress=false \
	--conf spark.sql.session.timeZone=UTC --driver-java-options "-Dlog4j2.configurationFile=file:$(abspath jobs/log4j2.properties)"

.PHONY: run test unit test-long check docs bench lock clean java python

# The JVM says that Spark uses an incubator module; nobody can act on it.
run: SHELL := /bin/bash
run: $(VENV)/.run java
	@$(SUBMIT) jobs/quickstart.py $(OUT) 2> >(grep -v "Using incubator modules" >&2)

test: $(VENV)/.dev java
	$(BIN)/python -m pytest -m "not long and not bench" -q tests/delta
	$(BIN)/python -m pytest -m "not long and not bench" -q --ignore=tests/delta --ignore=tests/cluster \
		--cov=batch_infer --cov-report=
	@echo "coverage of batch_infer, Spark's worker processes not counted: $$($(BIN)/python -m coverage report --format=total)%"

# No JVM, no socket; under a minute.
unit: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/unit

# The tables of docs/ that follow from the code.
docs: $(VENV)/.dev
	$(BIN)/python -m docs.generate

# Real processes that are killed, and what takes minutes.
test-long: $(VENV)/.dev java
	$(BIN)/python -m pytest -q tests/cluster
	$(BIN)/python -m pytest -m "long" -q --ignore=tests/cluster --ignore=tests/delta

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typed_usage.py
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.dev java
	$(BIN)/python -m tests.bench

java:
	@java=java; [ -n "$$JAVA_HOME" ] && java="$$JAVA_HOME/bin/java"; \
	version=$$("$$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1); \
	if [ -z "$$version" ] || [ "$$version" -lt 17 ]; then \
		echo "Spark needs a JDK, version 17 or later; found: $${version:-none}. Install one, for example:" >&2; \
		echo "  Debian, Ubuntu   sudo apt-get install openjdk-17-jre-headless" >&2; \
		echo "  Fedora           sudo dnf install java-17-openjdk-headless" >&2; \
		echo "  macOS            brew install openjdk@17" >&2; \
		echo "  conda            conda install -c conda-forge openjdk=17" >&2; \
		echo "or set JAVA_HOME to one that is installed." >&2; exit 1; fi

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; '$(PYTHON)' is older. Try: make PYTHON=python3.11 …" >&2; exit 1; }

$(BIN)/python: | python
	@$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.run: requirements.lock pyproject.toml $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@ $(VENV)/.run

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet
lock: $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) --extra spark --extra local --extra delta --extra dev -o requirements-dev.lock
	grep -v hash requirements-dev.lock | tr -d '\\' > $(VENV)/versions.txt
	$(LOCK) --extra spark --extra local --constraints $(VENV)/versions.txt -o requirements.lock

clean:
	rm -rf $(OUT) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
