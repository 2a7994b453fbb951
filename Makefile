# make quickstart   a virtual environment, a trained ViT, its figures: one command
# make test-fast    a minute of tests; make test more of them, make test-slow the others
# make campaign     what runs overnight
# make lint         rules, format and types
# make notebooks    pairs colabs/*.py with notebooks, executes and renders those that changed
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
WORKDIR ?= runs/quickstart

.PHONY: quickstart test-fast test test-slow campaign lint notebooks format clean
.DEFAULT_GOAL := help

help:
	@grep '^# make' Makefile

# Installed anew when a list of requirements changes.
$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	@echo "Installing vit_jax and the packages it needs into $(VENV) ..."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable . -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

quickstart: $(VENV)/.installed
	$(RUN) -m vit_jax.train --config=quickstart --workdir=$(WORKDIR)
	$(RUN) -m vit_jax.evaluate --workdir=$(WORKDIR)
	$(RUN) -m vit_jax.predict --checkpoint=$(WORKDIR) --top_k=3 $(WORKDIR)/samples

# Each test is in one of these parts: see tests/parts.py.
FAST := not (medium or slow or campaign)
MEDIUM := medium and not (slow or campaign)
SLOW := slow and not campaign
CAMPAIGN := campaign
# Neighbours share compiled programs: worksteal keeps them on one worker.
PYTEST := $(RUN) -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "$(FAST)"

test: $(VENV)/.installed-dev
	$(PYTEST) -m "($(FAST)) or ($(MEDIUM))"

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "$(SLOW)"

campaign: $(VENV)/.installed-dev
	$(PYTEST) -m "$(CAMPAIGN)"
	$(RUN) -m tests.mutation

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m basedpyright --pythonpath $(RUN)

notebooks: $(VENV)/.installed-dev
	$(RUN) -m tests.notebooks

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV)
