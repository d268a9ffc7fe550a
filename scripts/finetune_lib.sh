# shellcheck shell=bash
# The function that every ft-*.sh calls. The scripts source this file; it is not run directly.

# finetune DEFAULTS -- [plan] FLAGS: start fine-tuning, or, if the first word is `plan`, print what it would do.
# FLAGS come last, so they override the defaults. It runs in the repository's root; paths are relative to that.
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
    exec "$python" -m wellread "$verb" finetune "${defaults[@]}" "$@"
}
