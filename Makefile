# `make` alone lists the targets.
PYTHON ?= python3
EXTRAS ?= dev
CONSTRAINTS ?= constraints.txt
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup train plan test test-gpu test-faults test-slow test-browser lint types docs check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## make .venv and install the project with everything that tests need

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 …' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	@touch $@

# Machines that can do more than AVX2 round otherwise, which a short training carries to 0.1 nats: PyTorch's own kernels use AVX2.
ifeq ($(shell uname -m),x86_64)
train: export ATEN_CPU_CAPABILITY ?= avx2
endif
train: setup  ## train the smallest rung with DMA; overrides pass through: make train ARGS="attention=mha model=1m"
	$(RUN) train.py experiment=chinchilla_dma $(ARGS)

plan: setup  ## what that training will be and cost, before it is spent
	$(RUN) plan.py experiment=chinchilla_dma $(ARGS)

test: setup  ## the whole CPU test suite
	$(RUN) -m pytest -n auto --dist worksteal -m 'not gpu and not slow and not browser and not faults' $(ARGS)

test-gpu: setup  ## the tests that need a CUDA GPU, and a record of them in benchmarks/results
	$(RUN) bench.py gpu_tests $(ARGS)

test-faults: setup  ## thousands of faults on purpose, and a record of them in benchmarks/results
	$(RUN) bench.py faults $(ARGS)

test-slow: setup  ## the tests that take longer than the CPU suite allows
	$(RUN) -m pytest -m slow $(ARGS)

test-browser: setup  ## the report's page in a headless Chromium, which must be installed with its driver
	$(RUN) -m pytest -m browser $(ARGS)

lint: setup  ## ruff: lint and format, changing nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: setup  ## mypy
	$(VENV)/bin/mypy

docs: setup  ## docs/ and the API as a site that works offline, in site/
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

check: test lint types  ## all that CI runs

clean:  ## remove what was built, not what was trained
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
