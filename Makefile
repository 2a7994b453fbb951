# make quickstart   a virtual environment, a trained ViT, its pictures: one command
# make test         the tests; make test-slow the rest of them; make lint the checks
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
WORKDIR ?= runs/quickstart

.PHONY: quickstart test test-slow lint format clean
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
	$(RUN) -m vit_jax.train --config=configs/quickstart.py --workdir=$(WORKDIR)
	$(RUN) -m vit_jax.evaluate --workdir=$(WORKDIR)
	$(RUN) -m vit_jax.predict --checkpoint=$(WORKDIR) --top_k=3 $(WORKDIR)/samples

# Neighbours share compiled programs: worksteal keeps them on one worker.
test: $(VENV)/.installed-dev
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(RUN) -m pytest -n 2 --dist worksteal -m slow

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV)
