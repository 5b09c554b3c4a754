# `make demo` and `make test` do their own setup; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := graphattn tests examples benchmarks docs/make
# Two processes that begin far apart in the list of tests: neighbors need the same compiled code, which both would compile.
PARALLEL := -n 2 --dist worksteal

.PHONY: demo test test-oldest coverage check docs docs-fill format setup examples reproduce bench bench-dgl fuzz mutants soak gpu emulated clean

demo: setup
	$(BIN)/python examples/node_classification.py

test: setup
	$(BIN)/python -m pytest $(PARALLEL)

# The same tests with the oldest torch, PyG, NumPy, ... that pyproject.toml allows; some gigabytes to download.
test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest $(PARALLEL)

$(VENV)-oldest/.installed: pyproject.toml constraints-oldest.txt
	@$(PYTHON) -m venv $(VENV)-oldest
	@$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[plot,examples,dev]'
	@touch $@

# Lines and branches of graphattn/ that the tests run, those that Numba and Triton compile left out.
coverage: setup
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest $(PARALLEL)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

check: setup docs
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Builds the site: open build/docs/index.html. It needs no network; a broken link is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Copies results and texts of examples into the pages, between their marks; a test compares them.
docs-fill: setup
	$(BIN)/python docs/make/fill.py

format: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit('graphattn needs Python 3.11 or newer, $(PYTHON) is %d.%d. Use make PYTHON=python3.12' % sys.version_info[:2] if sys.version_info < (3, 11) else 0)"
	@echo "Installing into $(VENV): some minutes, only the first time."
	@$(PYTHON) -m venv $(VENV)
	@# pip would compile twelve thousand files on one core. Some packages have a few that aren't for this Python.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[plot,examples,export,dev,docs]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

# Every example without options, on data that needs no download; writes the table of examples/README.md.
examples: setup
	$(BIN)/python examples/run_all.py

# Published and our accuracies on real data; writes benchmarks/results/accuracy.md.
reproduce: setup
	$(BIN)/python benchmarks/accuracy.py

# Writes benchmarks/results; an hour on two cores or less, of which one step of PyG's HGTConv takes minutes.
bench: setup
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/structured.py
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/small.py
	$(BIN)/python benchmarks/own_scores.py
	$(BIN)/python benchmarks/relations.py
	$(BIN)/python benchmarks/attending.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/locality.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/projections.py

# DGL loads a library named after the exact torch version, up to 2.2.1, so it needs a separate environment.
bench-dgl: setup $(VENV)-dgl/.installed
	$(BIN)/python benchmarks/with_dgl.py $(VENV)-dgl/bin/python

$(VENV)-dgl/.installed:
	@$(PYTHON) -m venv $(VENV)-dgl
	@$(VENV)-dgl/bin/python -m pip install --quiet --disable-pip-version-check torch==2.2.1 dgl==2.1.0 "numpy<2" "torchdata<0.8" pandas pyyaml pydantic setuptools
	@touch $@

# Thousands of random calls against the oracle (`make test` draws a few); CALLS=10000 draws more. And the full products of
# parameters, of which `make test` has a covering design.
CALLS ?= 2000
fuzz: setup
	GRAPHATTN_FUZZ=$(CALLS) $(BIN)/python -m pytest $(PARALLEL) $$(grep -rlE "GRAPHATTN_FUZZ|from covering import" --include='test_*.py' tests)

# Plants faults in copies of the checkout, and says which test finds each; writes benchmarks/results/mutants.md.
mutants: setup
	$(BIN)/python tests/mutants.py

# Calls in threads, forks and processes for 20 minutes; writes benchmarks/results/soak.md.
soak: setup
	$(BIN)/python benchmarks/soak.py

# Uses the Python that has torch and CUDA, and installs nothing. Tests, the user's own check and calibration, benchmark:
# thirteen minutes at most, as each part has its share, and the next one runs even if one fails. Writes
# benchmarks/results/gpu, and the calibration into the user's cache.
GPU_TESTS := -m gpu -p no:benchmark tests/kernels/test_gpu.py
gpu:
	@$(PYTHON) -c "import importlib.util as u, sys; sys.exit(0 if u.find_spec('torch') and __import__('torch').cuda.is_available() else 'make gpu: $(PYTHON) has no torch with a CUDA device, so nothing was run.')"
	@export PYTHONPATH=.; status=0; \
	several=$$($(PYTHON) -c "import importlib.util as u; print('-n auto --maxprocesses 12' if u.find_spec('xdist') else '')"); \
	timeout 200 $(PYTHON) -m pytest $$several $(GPU_TESTS) || status=1; \
	if command -v compute-sanitizer > /dev/null; then \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 70 compute-sanitizer --tool memcheck --error-exitcode 1 \
	    $(PYTHON) -m pytest $(GPU_TESTS) -k "$(CHECKED)" || status=1; \
	else echo "make gpu: compute-sanitizer is not installed, so memory was not checked."; fi; \
	timeout 240 $(PYTHON) -m graphattn calibrate --device cuda || status=1; \
	timeout 260 $(PYTHON) benchmarks/gpu.py --seconds 240 || status=1; \
	exit $$status

# Short rows, long ones and cut ones: few, because the checker slows each launch down.
CHECKED := every_pattern and triton and float32 and (unsorted or hub or parallel)

# The laws of attention on another processor, emulated and slow. ARM_ROOT is an arm64 system with Python (debootstrap
# makes one), ARM_SITE a folder with pyproject.toml's packages for it (pip install --platform manylinux_2_28_aarch64
# --only-binary=:all: --target ...).
ARM_ROOT ?= /opt/arm64
ARM_SITE ?= /opt/arm64-packages
LAWS ?= tests/laws/test_laws.py
emulated:
	@command -v qemu-aarch64 > /dev/null || { echo "make emulated: qemu-aarch64 is not installed (package qemu-user)."; exit 1; }
	@test -x $(ARM_ROOT)/usr/bin/python3 || { echo "make emulated: ARM_ROOT=$(ARM_ROOT) has no usr/bin/python3."; exit 1; }
	PYTHONHOME=$(ARM_ROOT)/usr PYTHONPATH=$(ARM_SITE):. qemu-aarch64 -L $(ARM_ROOT) $(ARM_ROOT)/usr/bin/python3 \
	  -m pytest -q -p no:cacheprovider $(LAWS)

clean:
	rm -rf $(VENV) $(VENV)-dgl $(VENV)-oldest build *.egg-info outputs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
