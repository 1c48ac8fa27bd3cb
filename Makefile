# make course · make test · make lab · make bench · make notebooks; see README.md. Every target sets up .venv first, once.
#
#   PROFILE=smoke|course|paper   NOTEBOOK=02_scan   PARAMS="epochs=5 seed=1"   FRESH=1
#   TORCH_INDEX=URL              take torch from this package index (for example the small CPU build)
#   PYTHON=python3.12            the Python that .venv is made of

PYTHON ?= python3
PROFILE ?= course
NOTEBOOK ?=
PARAMS ?=
FRESH ?=
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
COURSE_FLAGS := --profile $(PROFILE) $(foreach n,$(NOTEBOOK),--notebook $(n)) $(foreach p,$(PARAMS),--param "$(p)") $(if $(FRESH),--fresh)

.PHONY: course test lint lab bench notebooks lock clean

course: $(VENV)/lab.stamp
	@$(BIN)/itm course $(COURSE_FLAGS)

test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/codespell

lab: $(VENV)/lab.stamp
	$(BIN)/jupyter lab notebooks

bench: $(VENV)/test.stamp
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# The stamps: nothing is installed again until pyproject.toml or constraints.txt changes.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "itm_lib needs Python 3.11 or newer: give one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/lab.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(if $(TORCH_INDEX),$(BIN)/pip install --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/pip install -c constraints.txt -e ".[lab]"
	@touch $@

$(VENV)/test.stamp: $(VENV)/lab.stamp
	$(BIN)/pip install -c constraints.txt -e ".[lab,test]"
	@touch $@

# The notebooks as they are committed: executed in place, in sequence, in the course profile.
notebooks: $(VENV)/lab.stamp
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $(if $(NOTEBOOK),notebooks/$(NOTEBOOK).ipynb,notebooks/*.ipynb)

# Pins what is installed here. torch's "+cpu" goes: a pin must fit every build of that version.
lock: $(VENV)/test.stamp
	@{ echo "# What CI ran, made with 'make lock'. Used with pip install -c: it pins what is installed, it installs nothing."; \
	   $(BIN)/pip list --format=freeze --exclude-editable --exclude pip --exclude setuptools --exclude wheel \
	   | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > constraints.part
	@mv constraints.part constraints.txt && touch $(VENV)/lab.stamp $(VENV)/test.stamp  # nothing to install again

clean:
	rm -rf $(VENV) build dist *.egg-info
