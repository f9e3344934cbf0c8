# `make help` lists what there is to do. Every target sets up what it needs first, once.
#
# VENV=.venv   the environment to make and use; `VENV=` (empty) uses the active python3 as it is
# PRESET=...   for `make repro`: a file of presets/, copied into params.yaml and run as an experiment
# MODEL=...    for `make sample`, `make publish` and `make gguf`: a folder, a DVC or Git revision, or an MLflow run's id

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
PRESET ?=

ifneq ($(VENV),)
ready := $(VENV)/.ready
export PATH := $(abspath $(VENV))/bin:$(PATH)
export VIRTUAL_ENV := $(abspath $(VENV))
endif
export PYTHONPATH := src$(if $(PYTHONPATH),:$(PYTHONPATH))
# by file, since the tests of a file share fixtures; alphabetically, since xdist would start the files with few, long
# tests last
PYTEST := pytest --dist loadfile --no-loadscope-reorder

# pyproject.toml's extra `docs`, without the project itself: installed, it would stand in for the code of other clones
docs_packages = $$(python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')

.DEFAULT_GOAL := help
.PHONY: help setup repro evaluate test test-slow test-gpu coverage bench bench-start check ui compare sample data docs push sync prune drop sweep publish gguf

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(ready)  ## make .venv and install requirements.lock

ifneq ($(VENV),)
$(ready): requirements.lock
	@echo "Setting up $(VENV): pip installs requirements.lock (on Linux, torch brings several GB for CUDA)"
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"ERROR: Python must be 3.11 or newer, got {sys.version.split()[0]}; use make PYTHON=python3.12")'
	@test -x $(VENV)/bin/pip3 || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python3 -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@
endif

repro: $(ready)  ## run the pipeline: what params.yaml asks for, or PRESET=tiny
	@git rev-parse --git-dir >/dev/null 2>&1 || test -e .git || grep -qs no_scm .dvc/config .dvc/config.local || { \
	echo 'ERROR: DVC wants a Git repository, got a folder without .git; run `git init && git add -A && git commit -m begin`, or `dvc config core.no_scm true` to go without (`dvc repro` alone, no experiments)' >&2; exit 1; }
ifeq ($(PRESET),)
	@echo "params.yaml: preset $$(sed -n 's/^preset: *\([^ #]*\).*/\1/p' params.yaml); other values: make repro PRESET=$$(ls presets | sed 's/\.yaml$$//' | paste -sd'|' -)"
	@python3 -m dvc repro
	@python3 -m smollm.operate.tidy
else
	@python3 -m smollm.operate.presets $(PRESET)
	@python3 -m smollm.operate.tidy
	@echo "params.yaml now holds preset $(PRESET); back to the full model: make repro PRESET=smollm-135m"
endif

evaluate: $(ready)  ## measure the finetuned model: held-out text, memorisation, samples (docs/evaluate.md)
	@mkdir -p evaluate && cmp -s stages/evaluate.yaml evaluate/dvc.yaml || cp stages/evaluate.yaml evaluate/dvc.yaml
	@python3 -m dvc repro evaluate/dvc.yaml

test: $(ready)  ## run the fast tests (minutes)
	@python3 -m $(PYTEST) -n 2 -m "not slow"

# in more processes than cores, since these tests also wait; without the other files, which take long to import
test-slow: $(ready)  ## run the slow tests (about a quarter of an hour)
	@python3 -m $(PYTEST) -n 3 -m slow $$(grep -rl --include='test_*.py' mark.slow tests | sort)

test-gpu: $(ready)  ## run the tests that need one NVIDIA GPU or two (minutes)
	@python3 -m $(PYTEST) -m gpu

coverage: $(ready)  ## run all tests, and list the lines of src/smollm that none of them reaches
	@python3 -m coverage erase
	@python3 -m coverage run -m $(PYTEST) -n 2
	@python3 -m coverage combine --quiet
	@python3 -m coverage report

bench: $(ready)  ## time training steps beside transformers' (minutes; ARGS="--shapes 32x2048")
	@python3 benchmarks/training_step.py $(ARGS)

bench-start: $(ready)  ## print where the time around the steps goes (minutes; ARGS="--rounds 3")
	@PYTHONPATH=src:tests python3 benchmarks/startup.py $(ARGS)

check: $(ready)  ## run ruff and mypy
	@ruff check .
	@ruff format --check .
	@mypy src stages benchmarks

ui: $(ready)  ## open MLflow's UI on port 5000 of this machine (ARGS="--port 5001")
	@python3 -m smollm.tracking.ui $(ARGS)

compare: $(ready)  ## print a table of all runs (ARGS="--sort bits_per_byte --csv runs.csv")
	@python3 -m smollm.tracking.compare $(ARGS)

# PROMPT counts on make's command line alone: some shells have a variable of this name
sample: $(ready)  ## continue PROMPT="def main(" with the model, or what you type (MODEL=low ARGS="--tokens 100 --seed 1")
	@python3 -m smollm.sample $(if $(MODEL),--model "$$MODEL") $(if $(filter command,$(origin PROMPT)),--prompt "$$PROMPT") $(ARGS)

sweep: $(ready)  ## run a study of settings, or what is left of it (STUDY=sweeps/learning-rate.yaml ARGS="--jobs 2")
	@python3 -m smollm.sweep $(or $(STUDY),$(error make sweep wants STUDY=..., a file such as sweeps/learning-rate.yaml)) $(ARGS)

data: $(ready)  ## show the text: counts, sources, some documents (ARGS="--seed 1")
	@python3 -m smollm.corpus.describe $(ARGS)

docs: $(ready)  ## build the docs site: site/html/index.html
ifneq ($(VENV),)
	@python3 -c 'import zensical, mkdocstrings' 2>/dev/null || \
	python3 -m pip install --quiet --disable-pip-version-check --constraint requirements.lock $(docs_packages)
endif
	@python3 docs/site/build.py

publish: $(ready)  ## publish the model to the Hugging Face hub: REPO=user/name (MODEL=low ARGS="--private --license mit")
	@python3 -m smollm.share.publish $(REPO) $(if $(MODEL),--model "$$MODEL") $(ARGS)

gguf: $(ready)  ## write the model as FILE=model.gguf for llama.cpp (MODEL=low ARGS="--type f16")
	@python3 -m smollm.share.gguf $(or $(FILE),$(error make gguf wants FILE=model.gguf)) $(if $(MODEL),--model "$$MODEL") $(ARGS)

push: $(ready)  ## copy checkpoints, models and data to the DVC remote
	@python3 -m dvc push

drop: $(ready)  ## remove a state that was kept after an edit (STATE=pretrain/..., as `make repro` names it)
	@python3 -m smollm.operate.tidy $(or $(STATE),$(error make drop wants STATE=..., the name of a folder below .resume/))

prune: $(ready)  ## delete for good the runs that were deleted in MLflow
	@python3 -m smollm.tracking.prune

sync: $(ready)  ## send to MLflow what it missed while it did not answer
	@python3 -m smollm.tracking.outbox
