#!/usr/bin/env bash
# Stop the development cluster of slurm_up.sh, its jobs included, and remove all it made. Harmless when nothing is up.
#
#   make slurm-down
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm_lib.sh
source "$here/slurm_lib.sh"

# Written in place: in a container /etc/hosts is a mount, which cannot be replaced by another file.
forget_names() {
    grep -qF "$HOSTS_MARK" /etc/hosts || return 0
    local rest
    rest=$(sed "\\|${HOSTS_MARK//./\\.}\$|d" /etc/hosts)
    printf '%s\n' "$rest" >/etc/hosts
}

main() {
    case "${1:-}" in
        --help | -h) help_text; return ;;
        --locked) ;;  # slurm_up.sh holds the lock already
        "") check_folder; lock ;;
        *) die "unknown argument $1; see scripts/slurm_down.sh --help" 2 ;;
    esac
    stop_all own_processes
    unplug_network
    forget_names
    [[ -e $STAMP ]] || return 0
    rm -rf "$DIR"
    say "stopped, and removed $DIR"
}

main "$@"
