#!/usr/bin/env bash
# Fine-tune a tiny model on the instructions in configs/data/, ask it a question, and ask the record where
# a text was read. Two minutes on two cores; a real model answers better: MODEL=pythia-410m.
#
#     examples/finetune_and_ask.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
run="${RUN:-runs/example}"

wellread run finetune --model "${MODEL:-tiny}" --data sample --out "$run" --steps "${STEPS:-100}"
wellread sample "$run" "Describe soup in no more than thirty words." --tokens 60
wellread read "$run" --text "barley"
wellread verify "$run"
