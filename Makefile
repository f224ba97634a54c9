# Everything runs in a virtual environment of its own, made on first use; needs Python >= 3.10.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: help venv demo test browser-test lint format types reference docs build clean

help:
	@echo "make demo    prune a small model and show what happened"
	@echo "make test    run the tests"
	@echo "make browser-test  open the HTML pages in a headless Chromium"
	@echo "make lint    check style        make format  repair it"
	@echo "make types   check types        make build   build the wheel into dist/"
	@echo "make docs    build the documentation as a site in build/site"
	@echo "make reference     write docs/reference.md from the docstrings"
	@echo "make venv    only set up $(VENV)  make clean   remove everything built"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps say what has been installed since pyproject.toml last changed.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	@touch $(VENV)/.installed $@

venv: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# A process for each core, and one thread for each process. Each begins with a part of the files as
# they come, so that they are whole for their fixtures, and takes over from the others at the end.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Chromium comes from Debian where that is possible; without one the tests are skipped and say so.
browser-test: $(VENV)/.installed-dev
	@command -v chromedriver >/dev/null || \
	    { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && \
	      apt-get update -qq && \
	      apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core; } || \
	    echo "no Chromium here, and none can be installed: browser tests are skipped"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[browser]'
	$(BIN)/python -m pytest tests/browser -rs

# The package as it is installed, passes/ included: mypy and import-linter look at folders alone.
TREE := build/tree
.PHONY: tree
tree:
	rm -rf $(TREE) && mkdir -p $(TREE)
	cp -R onnxprune $(TREE)/onnxprune
	cp -R passes $(TREE)/onnxprune/passes

lint: $(VENV)/.installed-dev tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(TREE) && $(abspath $(BIN))/lint-imports --config $(CURDIR)/pyproject.toml

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(VENV)/.installed-dev
	$(BIN)/python docs/make_reference.py

# Strict: a broken link fails. Nothing in the site is loaded from other hosts.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

types: $(VENV)/.installed-dev tree
	cd $(TREE) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/.mypy_cache

build: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
