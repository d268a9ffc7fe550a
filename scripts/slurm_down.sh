#!/usr/bin/env bash
# Stop the development cluster of slurm_up.sh and its jobs, and remove its files and network. Does nothing if no cluster
# is running.
#
#   make slurm-down
set -euo pipefail
scripts=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm_lib.sh
source "$scripts/slurm_lib.sh"

# Written in place: in a container /etc/hosts is a mount, which another file cannot replace.
remove_host_names() {
    grep -qF "$HOSTS_MARK" /etc/hosts || return 0
    local lines
    lines=$(sed "\\|${HOSTS_MARK//./\\.}\$|d" /etc/hosts)
    printf '%s\n' "$lines" >/etc/hosts
}

main() {
    case "${1:-}" in
        --help | -h) help_text; return ;;
        --locked) ;;  # slurm_up.sh already holds the lock
        "") check_folder; lock ;;
        *) die "unknown argument $1; see scripts/slurm_down.sh --help" 2 ;;
    esac
    stop_all cluster_processes
    remove_network
    remove_host_names
    [[ -e $STAMP ]] || return 0
    rm -rf "$DIR"
    say "stopped the cluster and removed $DIR"
}

main "$@"
