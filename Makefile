# Every command of the README. `make` alone explains them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup ft pretrain plan models status logs cancel doctor eval read verify report tb slurm-up slurm-down oom-demo test check lint bench gpu-check clean

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.wellread-setup

MODEL ?= tiny
DATA ?= $(if $(filter tiny,$(MODEL)),sample,dolly)
# The name of the model and those of the sets, without folders, suffixes and amounts (as `label` in wellread/data/sets.py);
# the shell keeps blanks in names whole.
RUN ?= runs/$(shell m="$(MODEL)"; m="$${m%/}"; d="$(DATA)"; echo "$${m##*/}-$$(echo "$$d" | sed -E \
	-e 's|[^,]*@||g' -e 's|/+(,\|$$)|\1|g' -e 's|[^,]*/||g' -e 's/:[-+.0-9e]+(,|$$)/\1/g' -e 's/[.][^,]*//g' -e 's/:/-/g' -e 's/,/+/g')")
CLUSTER ?= local
NODES ?= 1
RANKS ?= auto
THEN ?= eval
PACK ?=
WORKERS ?= 2
SIZE ?= 15M
VOCAB ?=
ARGS ?=
# Names reach the shell as variables: pasted into its commands, a name could be a command.
export MODEL DATA RUN CLUSTER VOCAB
FLAGS = --model "$$MODEL" --data "$$DATA" --out "$$RUN" --cluster "$$CLUSTER" --nodes $(NODES) --ranks_per_node $(RANKS) $(if $(filter-out 0,$(PACK)),--pack=true) $(ARGS)

help:  ## this page
	@echo "wellread: launch LLM training, and know exactly what every checkpoint has read"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo
	@echo "Settings: MODEL=$(MODEL) DATA=$(DATA) RUN=$(RUN) CLUSTER=$(CLUSTER) NODES=$(NODES) RANKS=$(RANKS) PACK=$(PACK) THEN=$(THEN) ARGS=\"--optim.lr=1e-5 …\""
	@echo "Example:  make ft MODEL=../models/pythia-70m DATA=dolly@databricks-dolly-15k.jsonl RANKS=2 ARGS=\"--steps=200\""

setup: $(STAMP)  ## create .venv and install everything into it (once)
	@echo "setup: $(VENV) is ready"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "setup: wellread needs Python 3.11 or newer, and $(PYTHON) is not; run make setup PYTHON=python3.12" >&2; exit 2; }
	@command -v c++ >/dev/null || \
		echo "setup: no C++ compiler (c++) here: zero1, zero2 and zero3 need one on a CPU; Debian: apt-get install g++" >&2
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "setup: creating $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV) || { echo "setup: on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }; \
	fi
	@echo "setup: installing the packages of constraints.txt into $(VENV) (some minutes, once)"
	@$(PY) -m pip install -qq --disable-pip-version-check --no-input --constraint constraints.txt --editable ".[train,dev]"
	@touch $@
	@echo "setup: installed $$($(PY) -m pip list --disable-pip-version-check 2>/dev/null | tail -n +3 | wc -l) packages, $$(du -sh $(VENV) | cut -f1)"

ft: $(STAMP)  ## fine-tune MODEL on DATA, evaluate, say where the report is
	@$(PY) -m launch run finetune --then $(THEN) $(FLAGS)

pretrain: MODEL = stories-$(shell echo "$(SIZE)" | tr A-Z a-z)
pretrain: DATA = stories:5000
pretrain: $(STAMP)  ## pretrain a Llama of SIZE on stories (DATA), write a sample, export it for llama2.c
	@$(PY) -m launch run pretrain $(FLAGS) $(if $(VOCAB),--vocab "$$VOCAB") --wait
	@$(PY) -m pretrain sample "$$RUN" "Once upon a time" --temperature 0 --tokens 100
	@test -e "$$RUN/model.bin" || $(PY) -m pretrain export "$$RUN" --format llama2c-v0 --out "$$RUN/model.bin"

plan: $(STAMP)  ## print what `make ft` would do, and start nothing
	@$(PY) -m launch plan finetune $(FLAGS)

models: $(STAMP)  ## models known by name, and the memory that fine-tuning them takes
	@$(PY) -m launch models $(ARGS)

eval: $(STAMP)  ## evaluate the checkpoints of RUN, write its report
	@$(PY) -m eval membership "$$RUN"

status: $(STAMP)  ## queue and run state of RUN, or of all runs
	@$(PY) -m launch status $(if $(filter command line environment,$(origin RUN)),"$$RUN") $(ARGS)

logs: $(STAMP)  ## logs of all ranks of RUN; ARGS="--follow", "--errors", …
	@$(PY) -m launch logs "$$RUN" $(ARGS)

cancel: $(STAMP)  ## ask RUN for a save, then end it
	@$(PY) -m launch cancel "$$RUN" $(ARGS)

doctor: $(STAMP)  ## check this machine, or the nodes of CLUSTER, before a job does
	@$(PY) -m launch doctor --cluster "$$CLUSTER" --nodes $(NODES) $(ARGS)

read: $(STAMP)  ## ask what RUN has read: ARGS="--batch 137", "--sample 5", "--text river", …
	@$(PY) -m eval read "$$RUN" $(ARGS)

verify: $(STAMP)  ## prove that RUN read what it says
	@$(PY) -m eval verify "$$RUN"

report: $(STAMP)  ## write the report of RUN again
	@$(PY) -m eval report "$$RUN"

tb: $(STAMP)  ## TensorBoard over runs/, on the loopback address
	@$(PY) -m tensorboard.main --logdir runs --host 127.0.0.1

slurm-up:  ## start a SLURM of two nodes on this machine: eval "$(make -s slurm-up)"
	@scripts/slurm_up.sh $(ARGS)

slurm-down:  ## stop that SLURM and remove all of it
	@scripts/slurm_down.sh

oom-demo: $(STAMP)  ## run out of memory for real, and go on: a 12B under plain DDP, scaled to this machine (root)
	@$(PY) -m scripts.oom_demo $(ARGS)

lint: $(STAMP)  ## formatting, lint, types, import layers
	@$(VENV)/bin/ruff format --check --quiet . || { echo "lint: mend it with $(VENV)/bin/ruff format ." >&2; exit 1; }
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

check: lint  ## lint, and the fast tests
	@$(PY) -m pytest -q -m "not slow"

test: $(STAMP)  ## every test that can run on this machine, WORKERS at a time
	@$(PY) -m pytest -n $(WORKERS)

bench: $(STAMP)  ## measure speed
	@for bench in bench/*.py; do echo "== $$bench"; $(PY) -m bench.$$(basename $$bench .py); done

# Without setup, which needs a network: on a machine without one, Python's packages are what they are.
gpu-check:  ## on a machine with GPUs: predicted and measured memory, speed, the story of pythia-12b
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m scripts.gpu_check $(ARGS)

clean:  ## remove caches and build files; runs/, corpora/ and .venv stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
