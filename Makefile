# uv where it is installed, python3 -m venv where it is not.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

ifdef UV
  CREATE = $(UV) venv --quiet --allow-existing $(VENV)
  INSTALL = $(UV) pip install --quiet --python $(BIN)/python
else
  CREATE = $(PYTHON) -m venv $(VENV)
  INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: run test test-all lint dist oracles browser clean

run: $(VENV)/.installed
	$(BIN)/python experiments/ccsrp.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

SHORT := --training.epochs 2 --rounds 1 --training.finetune-epochs 1 --train-images 256 \
  --search-images 64 --test-images 64 --time-steps 2 --width 0.25 --attack.suite pgd

# wheel and sdist; the wheel is tried in an environment of its own, outside the checkout
dist: $(VENV)/.installed-dev
	rm -rf dist
	$(INSTALL) build twine
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd dist && venv/bin/ccsrp --help && venv/bin/ccsrp version
	cd dist && venv/bin/ccsrp run --run-dir run $(SHORT)
	cd dist && venv/bin/ccsrp info run
	rm -rf dist/venv dist/run

oracles: $(VENV)/.installed-oracles
	$(BIN)/python -m pytest -m oracle tests/oracles

browser: $(VENV)/.installed-browser
	$(BIN)/python -m pytest tests/reporting/test_pages_in_a_browser.py

$(VENV)/.installed: pyproject.toml
	$(CREATE)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.installed-oracles: $(VENV)/.installed-dev
	$(INSTALL) -e '.[oracles]'
	@touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(INSTALL) -e '.[browser]'
	@touch $@

clean:
	rm -rf $(VENV) runs dist .pytest_cache .ruff_cache .hypothesis
