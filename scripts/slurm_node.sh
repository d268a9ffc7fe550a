#!/usr/bin/env bash
# Let a node of the development cluster fail, and restore it. For tests.
#
#   scripts/slurm_node.sh cut n1      disconnect its network: daemon and tasks keep running, but cannot be reached
#   scripts/slurm_node.sh kill n1     simulate a power failure: daemon and tasks are killed
#   scripts/slurm_node.sh restore n1  reconnect its network; restart its daemon if it has ended; put it in service
#
# The controller detects a failed node after about 20 s (a star in sinfo), and ends its jobs after about 35 s.
set -euo pipefail
scripts=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm_lib.sh
source "$scripts/slurm_lib.sh"

kill_node() {
    processes_on "$1" | xargs -r kill -KILL
    await_none 10 processes_on "$1" || die "processes of $1 did not end"
}

restore() {
    if has_namespace "$1"; then ip link set "$(veth "$1")" up; fi
    alive "slurmd-$1" || restart "$1"
    # A node that was down returns to service by itself; one that was drained does not.
    update "$1" State=RESUME || true
}

# A real node would report its new boot time, so that the controller knows that its jobs are lost. Without that, the
# controller waits for SlurmdTimeout. Marking the node as down makes the jobs fail, or be requeued, at once.
restart() {
    update "$1" State=DOWN Reason="restarted" || true
    start_node "$1"
}

update() { SLURM_CONF="$CONF" timeout 15 scontrol update NodeName="$1" "${@:2}" 2>/dev/null; }

main() {
    local verb=${1:-} node=${2:-}
    case "$verb $node" in
        "restore n1" | "restore n2") [[ -e $CONF ]] || die "no cluster in $DIR: run make slurm-up" 2 ;;
        "cut n1" | "cut n2" | "kill n1" | "kill n2")
            has_namespace "$node" ||
                die "no cluster in $DIR in which each node has its network: run make slurm-up as root" 2 ;;
        "--help " | "-h ") help_text; return ;;
        *) help_text >&2; exit 2 ;;
    esac
    case "$verb" in
        cut) ip link set "$(veth "$node")" down ;;
        kill) kill_node "$node" ;;
        restore) restore "$node" ;;
    esac
}

main "$@"
