# make demo    a small detector beats its own plain training, on built-in pictures (ten to twenty minutes on two cores)
# make test    the whole test suite
# make check   style, types and the quick tests
# make docs    writes docs/reference.md anew from the code
#
# All of them work in .venv, made and filled on first use (some 6 GB), again when pyproject.toml changes.
# Another Python: make demo PYTHON=python3.12. Options of the demo: make demo ARGS="--seed 1".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# One core a test process: two busy processes with two threads each slow each other down tenfold.
TESTING := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2
QUICK := tests/losses tests/geometry tests/methods tests/data tests/evaluation tests/test_recipe.py tests/test_docs.py

.PHONY: demo test check docs install install-dev clean

demo: install
	$(VENV)/bin/detdistill demo $(ARGS)

test: install-dev
	$(TESTING) tests $(ARGS)

check: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(TESTING) $(QUICK)

docs: install
	$(VENV)/bin/python docs/reference.py

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

# The plain torch of PyPI: torchvision's wheel is built against that one.
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -e ".[dev]"
	touch $(VENV)/installed $@

# Where Python comes without ensurepip (Debian without python3-venv), the pip that is there fills the environment.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "detdistill needs Python 3.11 or newer, and there is no $(PYTHON); name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "detdistill needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install pip; } || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
