# `make demo` and `make test` do all the set-up that they need; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := graphattn tests examples benchmarks

.PHONY: demo test check format setup examples reproduce bench bench-dgl gpu clean

demo: setup
	$(BIN)/python examples/node_classification.py

test: setup
	$(BIN)/python -m pytest -n 2

check: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit('graphattn needs Python 3.11 or newer, $(PYTHON) is %d.%d. Use make PYTHON=python3.12' % sys.version_info[:2] if sys.version_info < (3, 11) else 0)"
	@echo "Installing into $(VENV): a minute or a few, the first time alone."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plot,examples,dev]'
	@touch $@

# Every example as it is, on data that needs no download; writes the table of examples/README.md.
examples: setup
	$(BIN)/python examples/run_all.py

# Published accuracies beside ours, on real data; writes benchmarks/results/accuracy.md.
reproduce: setup
	$(BIN)/python benchmarks/accuracy.py

# Writes benchmarks/results; about ten minutes on two cores.
bench: setup
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/structured.py
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/sampling.py

# DGL loads a library named after the exact torch version, up to 2.2.1: hence an environment of its own.
bench-dgl: setup $(VENV)-dgl/.installed
	$(BIN)/python benchmarks/with_dgl.py $(VENV)-dgl/bin/python

$(VENV)-dgl/.installed:
	@$(PYTHON) -m venv $(VENV)-dgl
	@$(VENV)-dgl/bin/python -m pip install --quiet --disable-pip-version-check torch==2.2.1 dgl==2.1.0 "numpy<2" "torchdata<0.8" pandas pyyaml pydantic setuptools
	@touch $@

# Uses the Python that has torch and CUDA, and installs nothing.
gpu:
	@$(PYTHON) -c "import importlib.util as u, sys; sys.exit(0 if u.find_spec('torch') and __import__('torch').cuda.is_available() else 'make gpu: $(PYTHON) has no torch with a CUDA device, so nothing was run.')"
	PYTHONPATH=. $(PYTHON) -m pytest -m gpu tests

clean:
	rm -rf $(VENV) $(VENV)-dgl build *.egg-info outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis
