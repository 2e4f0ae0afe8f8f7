# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# An index to take torch from besides pip's own, whose torch for Linux brings
# some gigabytes of CUDA. auto: CPU_INDEX on Linux without an NVIDIA driver,
# where it can be reached; empty: none.
TORCH_INDEX ?= auto
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
BENCH_SEMANTIC_ARGS ?=
BENCH_CALIBRATION_ARGS ?=
BENCH_MATCHING_ARGS ?=
BENCH_PROPOSALS_ARGS ?=

PY := $(VENV)/bin/python
# Byte code is made when a module is first imported: most never are.
PIP_INSTALL := $(PY) -m pip --disable-pip-version-check install -q \
	--no-compile -c constraints.txt
SOURCES := mmsemi configs tools tests setup.py
TEST_REPORT := build/tests.xml

# Two targets may install into the same environment.
.NOTPARALLEL:
.PHONY: help install demo ops test lint bench docs clean distclean

help:
	@echo 'make install    create $(VENV), install mmsemi; needs no compiler'
	@echo 'make demo       install, train, compare, write work_dirs/demo'
	@echo 'make ops        install, compile the ops of mmcv (once per machine)'
	@echo 'make test       ops, then all tests'
	@echo 'make lint       flake8, isort and codespell'
	@echo 'make bench      ops, then time a semi-supervised step'
	@echo 'make docs       build docs/ into build/site'
	@echo 'make clean      remove what was built (distclean: $(VENV) too)'
	@echo 'Variables: PYTHON=python3.12  VENV=.venv-cuda'
	@echo '  TORCH_INDEX=https://download.pytorch.org/whl/cu130 (empty: pip'"'"'s own)'
	@echo '  PYTEST_ARGS="-k sampler"  DEMO_ARGS="--task semantic"  BENCH_ARGS=...'

$(PY):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit( \
		"mmsemi needs Python 3.10 or later, $(PYTHON) is " + \
		sys.version.split()[0] + "; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, because its index is a choice. mmcv is then
# built in isolation, where no torch is seen, so without ops and in seconds;
# pip leaves it alone where it is installed already, with or without ops. Not
# from pip's cache: that may hold ops that were built for another torch.
$(VENV)/.installed: constraints.txt requirements/runtime.txt \
		requirements/openmmlab.txt setup.cfg setup.py pyproject.toml | $(PY)
	@index='$(TORCH_INDEX)'; \
	if [ "$$index" = auto ]; then \
		index=; \
		if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && \
			$(PY) -c 'from urllib.request import urlopen; \
				urlopen("$(CPU_INDEX)/", timeout=5)' 2>/dev/null; \
		then index='$(CPU_INDEX)'; fi; \
	fi; \
	echo "Installing torch from $${index:-the index of pip} ..."; \
	$(PIP_INSTALL) $${index:+--extra-index-url "$$index"} torch
	@echo 'Installing OpenMMLab ...'
	@$(PIP_INSTALL) --no-cache-dir --no-deps onedl-mmcv
	@$(PIP_INSTALL) -r requirements/openmmlab.txt -r requirements/runtime.txt \
		setuptools
	@# The plain OpenCV needs libGL; the headless one writes the same files.
	@$(PY) -c 'import cv2' 2>/dev/null || $(PIP_INSTALL) --force-reinstall \
		--no-deps opencv-python-headless
	@echo 'Installing mmsemi ...'
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.tests-installed: constraints.txt requirements/tests.txt | $(PY)
	@$(PIP_INSTALL) -r requirements/tests.txt
	@touch $@

install: $(VENV)/.installed

demo: install
	$(PY) tools/demo.py --work-dir work_dirs/demo $(DEMO_ARGS)

ops: install
	$(PY) tools/build_mmcv_ops.py

# A process for each core; PYTEST_ARGS="-n 0" keeps to one, for a debugger.
test: ops $(VENV)/.tests-installed
	$(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile --durations=15 \
		--junitxml=$(TEST_REPORT) $(PYTEST_ARGS)
	@$(PY) -c 'import sys; from xml.etree import ElementTree; \
		suites = ElementTree.parse("$(TEST_REPORT)").iter("testsuite"); \
		skipped = sum(int(suite.get("skipped", 0)) for suite in suites); \
		sys.exit(f"{skipped} test(s) were skipped; none may be." \
			if skipped else 0)'

lint: $(VENV)/.tests-installed
	$(PY) -m flake8 $(SOURCES)
	$(PY) -m isort --check-only --diff $(SOURCES)
	$(PY) -m codespell_lib $(SOURCES) docs README.md

bench: ops
	$(PY) tools/analysis/benchmark.py $(BENCH_ARGS)
	$(PY) tools/analysis/benchmark_semantic.py $(BENCH_SEMANTIC_ARGS)
	$(PY) tools/analysis/benchmark_calibration.py $(BENCH_CALIBRATION_ARGS)
	$(PY) tools/analysis/benchmark_matching.py $(BENCH_MATCHING_ARGS)
	$(PY) tools/analysis/benchmark_proposals.py $(BENCH_PROPOSALS_ARGS)

docs: | $(PY)
	@$(PIP_INSTALL) -r requirements/docs.txt
	$(PY) -m mkdocs build --strict

clean:
	rm -rf build dist mmsemi.egg-info .pytest_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
