# make book, make test: each sets up everything it needs from a bare Python 3.11 or newer.
#
#   PYTHON=python3.12     which interpreter to begin with (default: the first new enough one found)
#   VENV=.venv            where the environment goes; VENV= (empty) uses the Python that is active, e.g. of conda
#   TORCH_INDEX=URL       package index for PyTorch alone, e.g. that of its CPU builds (see README.md)
#   PROFILE=cpu           smoke, cpu, gpu or paper;  CHAPTERS="02 03" for some;  FORCE=1 executes what did not change

VENV ?= .venv
TORCH_INDEX ?=
PROFILE ?=
CHAPTERS ?=
FORCE ?=
PORT ?= 8000
PYTEST_ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# Stamps say that a step is done for these files; they live in the environment they describe.
ifeq ($(strip $(VENV)),)
  PY := python
  STAMPS := .make
else
  PY := $(VENV)/bin/python
  STAMPS := $(VENV)/.make
endif
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint $(STAMPS)/constraints.txt

.PHONY: help book html smoke check test colab lint serve clean setup lock

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10
	@sed -n '3,6s/^# *//p' Makefile

book: setup ## execute the chapters that changed, build the book strictly, open it
	@$(PY) -m tutorial_lib.cli book --open $(if $(PROFILE),--profile $(PROFILE)) $(if $(CHAPTERS),--chapters $(CHAPTERS)) $(if $(FORCE),--force)

html: setup ## the strict HTML build of the published notebooks, nothing executed
	@$(PY) -m tutorial_lib.cli book --html-only

smoke: setup ## every chapter in seconds, nothing published: shape and order only
	@$(PY) -m tutorial_lib.cli book --profile smoke $(if $(CHAPTERS),--chapters $(CHAPTERS))

check: setup ## every number of the book against claims.yml; executes nothing
	@$(PY) -m tutorial_lib.cli check

test: setup ## the tests, one process per core (PYTEST_ARGS="--cov" shows what they miss)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto $(PYTEST_ARGS)

colab: setup ## the published notebooks as Colab opens them, in small (PROFILE=cpu: as they are; CHAPTERS="02 03": some)
	@COLAB_PROFILE=$(or $(PROFILE),smoke) COLAB_CHAPTERS="$(CHAPTERS)" $(PY) -m pytest tests/test_colab.py $(PYTEST_ARGS)

lint: setup ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m mypy

serve: setup ## the book at http://localhost:8000 (PORT=...), for a phone or another machine
	@test -f _build/html/index.html || $(MAKE) book
	@$(PY) -m http.server --directory _build/html $(PORT)

clean: ## remove what was built; the environment and the published notebooks stay
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

setup: $(STAMPS)/installed ## the environment alone

$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found; install one or say make PYTHON=/path/to/python." >&2; exit 1; }
ifneq ($(strip $(VENV)),)
	@$(PYTHON) -m venv $(VENV)
endif
	@mkdir -p $(STAMPS) && touch $@

# In an environment that is not ours (VENV=) PyTorch and numpy stay as they are: no constraint on either.
$(STAMPS)/constraints.txt: constraints.txt $(STAMPS)/venv
	@sed -E '$(if $(strip $(VENV)),,/^(torch|numpy)==/d)' constraints.txt > $@

# Changes only where another PyTorch is asked for, which then comes from TORCH_INDEX again.
$(STAMPS)/pin: constraints.txt $(STAMPS)/venv
	@grep '^torch==' constraints.txt | cmp -s - $@ || grep '^torch==' constraints.txt > $@

# PyTorch first and by itself: the constraint 2.13.0 is satisfied by 2.13.0+cpu, which pip prefers wherever it can
# see that build, and nothing installed later then asks for another one. Where VENV is empty, one that is there stays.
$(STAMPS)/torch: $(STAMPS)/venv $(STAMPS)/pin | $(STAMPS)/constraints.txt
ifeq ($(strip $(VENV)),)
	@$(PY) -c 'import torch' 2>/dev/null || $(PIP) --constraint constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
else
	@echo "Setting up $(VENV): a few minutes, once"
	@$(PIP) torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
endif
	@touch $@

$(STAMPS)/installed: $(STAMPS)/torch $(STAMPS)/constraints.txt pyproject.toml
	@$(PIP) --editable '.[book,test,stores,hub]'
	@touch $@

lock: setup ## write constraints.txt from this environment, after testing new versions
	@{ sed -n '/^#/p' constraints.txt; $(PY) -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//; / @ /d'; } > constraints.new
	@mv constraints.new constraints.txt
