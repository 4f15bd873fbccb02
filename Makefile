# Thin: every target is one command that also works by hand.
PYTHON ?= python3
VENV := .venv
WORKDIR ?= runs/demo
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow

demo: $(INSTALLED)
	$(VENV)/bin/python -m experiments.demo --workdir="$(WORKDIR)" $(if $(PROMPT),--prompt="$(PROMPT)")

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m "not slow" -n 2 --dist=loadfile

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow

$(INSTALLED): requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
