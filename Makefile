# make run | test | lint | bench | figures | docs. Each makes the environment that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= data,tensorboard,notebooks,dev
STAMP := $(VENV)/.ready-$(EXTRAS)
WORKERS ?= 2
WORKDIR ?= runs/saf_digits
ARGS ?=

.PHONY: setup run test slow lint format bench figures docs clean

setup: $(STAMP)

# Installs again only when pyproject.toml, the pins or EXTRAS have changed since the last time.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $(STAMP)

run: setup
	$(BIN)/python -m experiments.compare --workdir=$(WORKDIR) $(ARGS)

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal

slow: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks

figures: setup
	$(BIN)/python -m experiments.figures

docs: setup
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .cache site
