#!/usr/bin/env bash
# Fine-tune pythia-70m on Dolly. Needs one GPU of 8 GiB, or takes hours on a CPU.
#
#   scripts/ft-pythia-70m.sh [plan] [FLAGS]
set -euo pipefail
# shellcheck source=finetune_lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/finetune_lib.sh"
finetune --model pythia-70m --data dolly -- "$@"
