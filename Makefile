# make demo    trains a teacher, a plain and a distilled student on built-in images, and writes an ONNX file and a page
# make test    runs the whole test suite; where it can, it first installs Chromium for the tests of the report (apt)
# make check   runs ruff, mypy and the quick tests
# make docs    writes the generated pages from the code, and builds the site of the documentation into site/
#
# All targets use the virtual environment .venv (about 6 GB). It is created on first use, and updated when pyproject.toml
# changes. Another Python: make demo PYTHON=python3.12. Options of the demo: make demo ARGS="--seed 1".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# One thread per test process: two processes with two threads each on two cores slow each other down tenfold.
TESTING := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2
QUICK := tests/losses tests/geometry tests/methods tests/data tests/evaluation tests/recipe tests/inspection tests/test_text.py tests/test_docs.py tests/test_site.py

.PHONY: demo test check docs install install-dev install-docs clean

demo: install
	$(VENV)/bin/detdistill demo $(ARGS)

test: install-dev
	@sh tests/browser.sh
	$(TESTING) tests $(ARGS)

check: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(TESTING) $(QUICK)

# MkDocs prints an advertisement without the variable. A broken link or any other warning stops the build.
docs: install-docs
	$(VENV)/bin/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "the site is in site/: open site/index.html, or for its search: $(VENV)/bin/python -m http.server --directory site"

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev
install-docs: $(VENV)/installed-docs

# torchvision's wheel is built against the plain torch of PyPI.
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -e ".[onnx]"
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -e ".[dev]"
	touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -e ".[docs]"
	touch $(VENV)/installed $@

# If Python has no ensurepip (Debian without python3-venv), the system's pip fills the environment.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "detdistill needs Python 3.11 or newer, and there is no $(PYTHON); name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "detdistill needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install pip; } || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
