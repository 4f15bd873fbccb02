# Each target is one or two commands that also work by hand.
PYTHON ?= python3
VENV := .venv
COLAB_PYTHON ?= 3.13
WORKDIR ?= runs/tiny
INSTALLED := $(VENV)/.installed
TEST_INSTALLED := $(VENV)/.test-installed
DOCS_INSTALLED := $(VENV)/.docs-installed

.PHONY: demo demo-music train-tiny docs lint test test-slow test-faults test-fuzz test-beam test-browser test-oracle test-oracle-slow \
  test-abx test-judges test-music test-tpu test-colab test-colab-fast colab-python test-mutation benchmark-codec

demo: $(INSTALLED)
	$(VENV)/bin/python -m experiments.demo $(if $(PROMPT),--prompt="$(PROMPT)")

# FONT: a second sound font, with which judges of attributes learn; without it they are left out.
demo-music: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt --editable ".[music,plot]"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps musicnn==0.1.0 basic-pitch==0.4.0
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt onnxruntime
	$(VENV)/bin/python -m experiments.train --stage=all --recipe=tiny_music --workdir=runs/tiny_music
	$(VENV)/bin/python -m experiments.evaluate --suite=music --recipe=tiny_music --workdir=runs/tiny_music \
	  $(if $(FONT),--set evaluation.judge_font="$(FONT)")
	$(VENV)/bin/python -m experiments.demo_music --recipe=tiny_music --workdir=runs/tiny_music

train-tiny: $(INSTALLED)
	$(VENV)/bin/python -m experiments.full_run --workdir="$(WORKDIR)" $(if $(PROMPT),--prompt="$(PROMPT)")

docs: $(DOCS_INSTALLED)
	$(VENV)/bin/sphinx-build -W --keep-going -q docs docs/_build

lint: $(TEST_INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m "not slow and not faults and not fuzz and not beam and not oracle and not browser and not judges and not tpu" \
	  -n 2 --dist=worksteal --durations=25

test-slow: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m "slow and not oracle"

test-faults: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m faults -p no:hypothesispytest tests/faults

test-fuzz: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m fuzz tests/fuzz

test-beam: .venv-beam/.installed
	.venv-beam/bin/python -m pytest -m beam tests/data

test-browser: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest -m browser

test-oracle: .venv-oracle/.installed
	.venv-oracle/bin/python -m pytest -m "oracle and not slow" tests/pretrained tests/experiments/test_benchmark_codec.py

test-oracle-slow: .venv-oracle/.installed
	.venv-oracle/bin/python -m pytest -m "oracle and slow" tests/pretrained

test-abx: .venv-abx/.installed
	.venv-abx/bin/python -m pytest -m oracle tests/metrics

test-judges: .venv-judges/.installed
	.venv-judges/bin/python -m pytest -m judges tests/metrics

test-music: .venv-music/.installed
	.venv-music/bin/python -m pip install --quiet --disable-pip-version-check --no-deps musicnn==0.1.0
	.venv-music/bin/python -m pytest tests/data/test_rendering.py tests/data/test_music.py \
	  tests/pretrained/test_musicnn.py tests/pretrained/test_musicnn_oracle.py

benchmark-codec: .venv-oracle/.installed
	.venv-oracle/bin/python -m experiments.benchmark codec

test-tpu: .venv-tpu/.installed
	TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu .venv-tpu/bin/python -m pytest -m tpu tests/experiments/test_compile.py

# Prints the interpreter of the second lane. COLAB_PYTHON: a version, or a path.
colab-python: .venv-uv/bin/uv
	@tests/find_python.sh $(COLAB_PYTHON) .venv-uv/bin/uv

# The part that CI runs: tokens, sampling, and toy models that generate by both acoustic paths. The newest packages
# may warn of what they will change.
test-colab-fast: .venv-colab/.installed
	.venv-colab/bin/python -m pytest -W default --durations=5 tests/test_tokens.py tests/test_sampling.py \
	  tests/experiments/test_generate.py::test_unconditional_rows_have_the_length_that_was_asked_for

# Also the notebook in a kernel, with toy models and as it is, and a wheel in a fresh environment.
test-colab: .venv-colab/.installed
	.venv-colab/bin/python -m pytest -s tests/test_tokens.py tests/test_sampling.py tests/test_notebook_kernel.py \
	  tests/test_packaging.py::test_a_newcomer_installs_hears_and_uninstalls

test-mutation: .venv-mutation/.installed
	.venv-mutation/bin/python -m tests.mutation

$(INSTALLED): requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(TEST_INSTALLED): $(INSTALLED) tests/requirements-eval.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-eval.txt
	touch $@

$(DOCS_INSTALLED): $(INSTALLED) tests/requirements-docs.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-docs.txt
	touch $@

# Colab's Python and what its kernel has imported, with the newest other packages that these admit.
.venv-colab/.installed: setup.py tests/constraints-colab.txt tests/find_python.sh | .venv-uv/bin/uv
	python=$$(tests/find_python.sh $(COLAB_PYTHON) .venv-uv/bin/uv) && \
	  .venv-uv/bin/uv venv --quiet --clear --python="$$python" .venv-colab
	.venv-uv/bin/uv pip install --quiet --python=.venv-colab/bin/python --constraint=tests/constraints-colab.txt \
	  --editable=".[plot,hub]" beartype hypothesis ipykernel nbclient pytest
	touch $@

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

# One environment per tool, and per original that tests compare with.
.venv-%/.installed: requirements.txt tests/requirements-%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements-$*.txt
	touch $@
