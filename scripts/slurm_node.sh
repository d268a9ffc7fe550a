#!/usr/bin/env bash
# Break and mend a node of the development cluster, as tests need it.
#
#   scripts/slurm_node.sh cut n1     pull its network cable: daemon and tasks live on, nobody reaches them
#   scripts/slurm_node.sh kill n1    as if it lost its power: daemon and tasks end at once
#   scripts/slurm_node.sh mend n1    cable back; daemon started again if it is gone, its jobs lost; node in service
#
# The controller notices a node that is cut off or killed after some 20 s (a star in sinfo), and ends its jobs after 35.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm_lib.sh
source "$here/slurm_lib.sh"

kill_node() {
    host_processes "$1" | xargs -r kill -KILL
    await_none 10 host_processes "$1" || die "processes of $1 do not end"
}

mend() {
    if own_namespace "$1"; then ip link set "$(veth "$1")" up; fi
    alive "slurmd-$1" || restart "$1"
    # A node that was down comes back by itself; one that was drained does not.
    update "$1" State=RESUME || true
}

# The controller tells a node that lost its jobs from one that was briefly busy only after its time limit for nodes;
# where a real node would report a later boot, say it: the jobs fail, or are queued again, at once.
restart() {
    update "$1" State=DOWN Reason="started again" || true
    start_node "$1"
}

update() { SLURM_CONF="$CONF" timeout 15 scontrol update NodeName="$1" "${@:2}" 2>/dev/null; }

main() {
    local verb=${1:-} node=${2:-}
    case "$verb $node" in
        "mend n1" | "mend n2") [[ -e $CONF ]] || die "no cluster in $DIR: make slurm-up" 2 ;;
        "cut n1" | "cut n2" | "kill n1" | "kill n2")
            own_namespace "$node" || die "no cluster in $DIR whose nodes are hosts of their own: make slurm-up as root" 2 ;;
        "--help " | "-h ") help_text; return ;;
        *) help_text >&2; exit 2 ;;
    esac
    case "$verb" in
        cut) ip link set "$(veth "$node")" down ;;
        kill) kill_node "$node" ;;
        mend) mend "$node" ;;
    esac
}

main "$@"
