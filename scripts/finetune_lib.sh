# shellcheck shell=bash
# What every ft-*.sh does. Sourced by them, never run.

# finetune DEFAULTS -- [plan] FLAGS: start the fine-tune, or, where the first word is `plan`, print what it would do.
# FLAGS come last, so they win over the defaults. It runs in the repository's root, and so do relative paths.
finetune() {
    local defaults=() verb=run python=.venv/bin/python
    while [[ $1 != -- ]]; do
        defaults+=("$1")
        shift
    done
    shift
    if [[ ${1:-} == plan ]]; then
        verb=plan
        shift
    fi
    cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/.." || return
    [[ -x $python ]] || python=python3
    exec "$python" -m launch "$verb" finetune "${defaults[@]}" "$@"
}
