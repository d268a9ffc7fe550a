# The commands of the README; `make` without a target explains them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup ft pretrain plan models status logs cancel doctor eval read verify report tb slurm-up slurm-down oom-demo test test-long check lint bench bench-cpu gpu-check clean

# A name that comes from elsewhere must not be executed, neither by make nor by the shell: make expands no value of a
# setting (`value`), and recipes read it as a variable of the shell, in quotes.
SETTINGS := MODEL DATA RUN CLUSTER NODES RANKS THEN PACK WORKERS SIZE VOCAB LLAMA2C ARGS PYTHON
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command override,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(SETTINGS) MAKEFLAGS MAKEOVERRIDES MAKELEVEL -*-command-variables-*-,$(GIVEN))
ifneq ($(UNKNOWN),)
$(error unknown setting $(firstword $(UNKNOWN)); choose one of $(SETTINGS))
endif
MODEL_IS_SET := $(filter command environment,$(origin MODEL))
THEN_IS_SET := $(filter command environment,$(origin THEN))

MODEL ?= tiny
DATA ?=
RUN ?=
CLUSTER ?= local
NODES ?= 1
RANKS ?= auto
THEN ?= eval
PACK ?=
WORKERS ?= 2
SIZE ?= 15M
VOCAB ?=
LLAMA2C ?=
ARGS ?=
PYTHON ?= python3
$(foreach name,$(SETTINGS),$(eval override $(name) := $$(value $(name))))
override PACK := $(filter-out 0,$(PACK))
export $(SETTINGS)

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.wellread-setup
# Start a module with these arguments and those in ARGS, which are split as a shell does, but not executed.
START := $(PY) -m scripts.with_args
WELLREAD := $(START) wellread
FLAGS = $${DATA:+--data "$$DATA"} $${RUN:+--out "$$RUN"} --cluster "$$CLUSTER" --nodes "$$NODES" --ranks_per_node "$$RANKS" \
	$${PACK:+--pack=true}
# The run directory that the launcher chooses for MODEL and DATA; only targets that need it start Python for it.
DEFAULT_RUN = $(PY) -c 'import os, sys; from wellread.recipes.registry import default_run; \
	print(default_run(sys.argv[1], os.environ["MODEL"], os.environ["DATA"]))'
THE_RUN = "$${RUN:-$$($(DEFAULT_RUN) finetune)}"

help:  ## show this page
	@echo "wellread: launch LLM training, and know exactly what every checkpoint has read"
	@echo
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo
	@echo "Settings: MODEL=$$MODEL DATA=$${DATA:-(sample for tiny, otherwise dolly)} RUN=$${RUN:-runs/MODEL-DATA} CLUSTER=$$CLUSTER"
	@echo "          NODES=$$NODES RANKS=$$RANKS PACK=$$PACK THEN=$$THEN ARGS=\"--optim.lr=1e-5 …\""
	@echo "Example:  make ft MODEL=../models/pythia-70m DATA=my.jsonl RANKS=2 ARGS=\"--steps=200\""

setup: $(STAMP)  ## create .venv and install everything into it (once)
	@echo "setup: $(VENV) is ready"

$(STAMP): pyproject.toml constraints.txt
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "setup: wellread needs Python 3.11 or newer, and $$PYTHON is older; run make setup PYTHON=python3.12" >&2; exit 2; }
	@command -v c++ >/dev/null || \
		echo "setup: no C++ compiler (c++) found: zero1, zero2 and zero3 need one on a CPU; Debian: apt-get install g++" >&2
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "setup: creating $(VENV) with $$("$$PYTHON" --version)"; \
		"$$PYTHON" -m venv --clear $(VENV) || { echo "setup: on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }; \
	fi
	@echo "setup: installing the packages of constraints.txt into $(VENV) (some minutes, once)"
	@$(PY) -m pip install -qq --disable-pip-version-check --no-input --constraint constraints.txt --editable ".[train,dev]"
	@touch $@
	@echo "setup: installed $$($(PY) -m pip list --disable-pip-version-check 2>/dev/null | tail -n +3 | wc -l) packages, $$(du -sh $(VENV) | cut -f1)"

ft: $(STAMP)  ## fine-tune MODEL on DATA, evaluate it, print the path of the report
	@$(WELLREAD) run finetune --model "$$MODEL" --then "$$THEN" $(FLAGS)

pretrain: $(STAMP)  ## pretrain a Llama of SIZE on stories (DATA), write a sample, export it for llama2.c
	@DATA="$${DATA:-stories:5000}"; $(WELLREAD) run pretrain $(if $(MODEL_IS_SET),--model "$$MODEL",--size "$$SIZE") $${VOCAB:+--vocab "$$VOCAB"} $(if $(THEN_IS_SET),--then "$$THEN") $(FLAGS) --wait
	@DATA="$${DATA:-stories:5000}"; $(if $(MODEL_IS_SET),,MODEL="stories-$${SIZE,,}";) run="$${RUN:-$$($(DEFAULT_RUN) pretrain)}" && \
		$(PY) -m wellread sample "$$run" "Once upon a time" --temperature 0 --tokens 100 && \
		{ test -e "$$run/model.bin" || $(PY) -m wellread export "$$run" --format llama2c-v0 --out "$$run/model.bin"; }

plan: $(STAMP)  ## show what `make ft` would do, and start nothing
	@$(WELLREAD) plan finetune --model "$$MODEL" $(FLAGS)

models: $(STAMP)  ## list the models known by name, and the memory that fine-tuning them needs
	@$(WELLREAD) models

eval: $(STAMP)  ## evaluate the checkpoints of RUN, write its report
	@$(WELLREAD) membership $(THE_RUN)

status: $(STAMP)  ## show the state of RUN, or of all runs
	@$(WELLREAD) status $${RUN:+"$$RUN"}

logs: $(STAMP)  ## print the logs of all ranks of RUN; ARGS="--follow", "--errors", …
	@$(WELLREAD) logs $(THE_RUN)

cancel: $(STAMP)  ## save a checkpoint of RUN, then end it
	@$(WELLREAD) cancel $(THE_RUN)

doctor: $(STAMP)  ## check this machine or the nodes of CLUSTER
	@$(WELLREAD) doctor --cluster "$$CLUSTER" --nodes "$$NODES"

read: $(STAMP)  ## show what RUN has read: ARGS="--batch 137", "--sample 5", "--text river", …
	@$(WELLREAD) read $(THE_RUN)

verify: $(STAMP)  ## verify the record of RUN
	@$(WELLREAD) verify $(THE_RUN)

report: $(STAMP)  ## write the report of RUN again
	@$(WELLREAD) report $(THE_RUN)

tb: $(STAMP)  ## start TensorBoard for runs/, on the loopback address
	@$(PY) -m tensorboard.main --logdir runs --host 127.0.0.1

slurm-up:  ## start a SLURM of two nodes on this machine: eval "$(make -s slurm-up)"
	@read -ra args <<< "$$ARGS"; scripts/slurm_up.sh "$${args[@]}"

slurm-down:  ## stop this SLURM and remove all its files
	@scripts/slurm_down.sh

oom-demo: $(STAMP)  ## run out of memory, and continue: a 12B model with DDP, scaled to this machine (root)
	@$(START) scripts.oom_demo

lint: $(STAMP)  ## formatting, lint, types, import layers
	@$(VENV)/bin/ruff format --check --quiet . || { echo "lint: fix it with $(VENV)/bin/ruff format ." >&2; exit 1; }
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

check: lint  ## lint, and the fast tests
	@$(PY) -m pytest -q -m "not slow and not long"

test: $(STAMP)  ## test every part in some minutes, WORKERS processes at a time
	@$(PY) -m pytest -n "$$WORKERS" -m "not long"

test-long: $(STAMP)  ## the tests that make test leaves out: every case, many kills, simulations
	@$(PY) -m pytest -n "$$WORKERS" -m long

bench: $(STAMP)  ## measure speed, except what needs LLAMA2C, a run or a folder
	@for bench in $(filter-out bench/cpu.py bench/marks.py bench/membership.py bench/memorization.py,$(wildcard bench/*.py)); do echo "== $$bench"; $(PY) -m bench.$$(basename $$bench .py); done

bench-cpu: $(STAMP)  ## measure pretraining on a CPU against llama2.c's model; LLAMA2C=DIR is its checkout
	@[ -n "$$LLAMA2C" ] || { echo "bench-cpu: give a checkout of llama2.c: make bench-cpu LLAMA2C=DIR" >&2; exit 2; }
	@$(PY) -m scripts.with_args bench.cpu "$$LLAMA2C"

# Without setup, which needs a network: a machine without one uses the Python packages that it has.
gpu-check:  ## on a machine with GPUs: correctness, speed, predicted and measured memory (docs/gpu.md)
	@$(if $(wildcard $(PY)),$(PY),"$$PYTHON") -m scripts.with_args scripts.gpu_check

clean:  ## remove caches and build files; runs/, corpora/ and .venv stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
