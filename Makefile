# Each target sets up .venv from requirements.lock on first use; afterwards that check costs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Idle OpenMP threads sleep, or an XGBoost fit beside another busy process takes many times longer.
export OMP_WAIT_POLICY := PASSIVE
# A virtual environment holds its own path, so it is made anew where the folder has moved.
$(shell [ "$$(cat .venv/.installed 2>/dev/null)" = "$$(pwd -P)" ] || rm -f .venv/.installed)

.PHONY: help venv run test test-fast test-outputs test-browser torture lab ui lint bench bench-scale bench-oracle bench-peers notebooks lock

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 18

venv: .venv/.installed  ## set up .venv

.venv/.installed: requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name yours: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip' || \
		{ echo "Python's venv module is needed: sudo apt-get install python3-venv"; exit 1; }
	@echo "Installing the packages of requirements.lock into .venv; this takes a minute or two"
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@pwd -P > $@

run: venv  ## simulate the fleet, run all notebooks, name the champion
	$(BIN)/hvs run

test: venv  ## all tests: unit, notebook rules, smoke runs, committed outputs, browser
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder tests/notebooks tests/unit hvs_lib  # the long ones first

test-outputs: venv  ## the committed outputs come out again at the defaults; 10 minutes
	HVS_PROJECT_ROOT=$$(mktemp -d) $(BIN)/pytest --nbval-lax --nbval-cell-timeout=1200 notebooks

test-browser: venv  ## the notebooks and the MLflow UI in headless chromium, with screenshots
	$(BIN)/pytest -ra tests/notebooks/test_browser.py

torture: venv  ## kill the run 21 times, start it again, compare; and runs side by side; 50 minutes
	HVS_TORTURE=21 $(BIN)/pytest -rA -n 2 tests/notebooks/test_torture.py
	HVS_TORTURE=21 $(BIN)/pytest -rA tests/notebooks/test_side_by_side.py

test-fast: venv  ## the quick tests: no notebook, store, server, cluster or whole site
	$(BIN)/pytest -n 2 -m "not slow"

lab: venv  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

ui: venv  ## browse the runs in the MLflow UI
	$(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"

lint: venv  ## check style, the notebooks included
	$(BIN)/ruff check
	$(BIN)/ruff format --check

bench: venv  ## measure speed: simulator, loading, features, metrics
	$(BIN)/pytest tests/benchmarks --benchmark-columns=min,median,max,rounds

bench-scale: venv  ## measure time and memory of 12 to 768 sites, on one Dask worker and on two
	$(BIN)/python tests/benchmarks/scale.py 12 48 192 768 --workers 1 --workers 2

bench-oracle: venv  ## how far alarms can go on fresh sites, with better sensors and with perfect knowledge
	$(BIN)/python tests/benchmarks/oracle.py

.venv-peers/.installed: pyproject.toml
	"$(PYTHON)" -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --editable '.[peers]'
	@touch $@

bench-peers: .venv-peers/.installed  ## compare the search with FLAML and AutoGluon, 90 s each
	.venv-peers/bin/python tests/benchmarks/peers.py

notebooks: venv  ## execute the notebooks at their defaults and keep the outputs, for committing
	HVS_PROJECT_ROOT=$$(mktemp -d) $(BIN)/hvs run --in-place  # an earlier champion would be named

lock: venv  ## pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra dask --extra remote --universal --python-version 3.11 \
		--no-emit-index-url --no-annotate --no-header --upgrade --quiet -o requirements.lock
