# Thin: every target is one command that also works by hand.
PYTHON ?= python3
VENV := .venv
WORKDIR ?= runs/demo
INSTALLED := $(VENV)/.installed
TEST_INSTALLED := $(VENV)/.test-installed
ORACLE_VENV := .venv-oracle
ORACLE_INSTALLED := $(ORACLE_VENV)/.installed
BEAM_VENV := .venv-beam
BEAM_INSTALLED := $(BEAM_VENV)/.installed
ABX_VENV := .venv-abx
ABX_INSTALLED := $(ABX_VENV)/.installed
TPU_VENV := .venv-tpu
TPU_INSTALLED := $(TPU_VENV)/.installed

.PHONY: demo test test-slow test-faults test-beam test-browser test-oracle test-oracle-slow test-abx test-tpu benchmark-codec

demo: $(INSTALLED)
	$(VENV)/bin/python -m experiments.demo --workdir="$(WORKDIR)" $(if $(PROMPT),--prompt="$(PROMPT)")

test: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m "not slow and not faults and not beam and not oracle and not browser and not tpu" \
	  -n 2 --dist=loadfile

test-slow: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m "slow and not oracle"

test-faults: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m faults tests/faults

test-beam: $(BEAM_INSTALLED)
	$(BEAM_VENV)/bin/python -m pytest -m beam tests/data

test-browser: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m browser

test-oracle: $(ORACLE_INSTALLED)
	$(ORACLE_VENV)/bin/python -m pytest -m "oracle and not slow" tests/pretrained tests/experiments/test_benchmark_codec.py

test-oracle-slow: $(ORACLE_INSTALLED)
	$(ORACLE_VENV)/bin/python -m pytest -m "oracle and slow" tests/pretrained

test-abx: $(ABX_INSTALLED)
	$(ABX_VENV)/bin/python -m pytest -m oracle tests/metrics

benchmark-codec: $(ORACLE_INSTALLED)
	$(ORACLE_VENV)/bin/python -m experiments.benchmark codec

test-tpu: $(TPU_INSTALLED)
	TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu $(TPU_VENV)/bin/python -m pytest -m tpu tests/experiments/test_compile.py

$(INSTALLED): requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(TEST_INSTALLED): $(INSTALLED) tests/requirements-eval.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-eval.txt
	touch $@

$(ORACLE_INSTALLED): requirements.txt tests/requirements-oracle.txt
	$(PYTHON) -m venv $(ORACLE_VENV)
	$(ORACLE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(ORACLE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-oracle.txt
	touch $@

$(BEAM_INSTALLED): requirements.txt tests/requirements-beam.txt
	$(PYTHON) -m venv $(BEAM_VENV)
	$(BEAM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BEAM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-beam.txt
	touch $@

$(ABX_INSTALLED): requirements.txt tests/requirements-abx.txt
	$(PYTHON) -m venv $(ABX_VENV)
	$(ABX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(ABX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-abx.txt
	touch $@

$(TPU_INSTALLED): requirements.txt tests/requirements-tpu.txt
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-tpu.txt
	touch $@
