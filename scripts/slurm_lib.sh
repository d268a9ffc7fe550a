# shellcheck shell=bash disable=SC2034
# What the scripts of the development SLURM cluster share: where its parts lie, its network, which processes are its.
# Sourced by slurm_up.sh, slurm_down.sh and slurm_node.sh; does nothing by itself.

PATH="$PATH:/usr/sbin:/sbin"
DIR=$(realpath -m -- "${WELLREAD_SLURM_DIR:-/var/tmp/wellread-slurm}")
CONF="$DIR/slurm.conf"
STAMP="$DIR/.wellread-slurm"  # only a folder with this file is ever removed; its text is the form: hosts or simple
HOSTS_MARK="# wellread-slurm $DIR"
BRIDGE=wr-br
NETWORK=10.77.0  # .1 is the controller, .11 is n1, .12 is n2
NODES=(n1 n2)

say() { echo "${0##*/}: $*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

# From a node's name to its address, its network namespace and the host's end of its cable.
address() { echo "$NETWORK.1${1#n}"; }
namespace() { echo "wellread-$1"; }
veth() { echo "wr-$1"; }

help_text() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

check_folder() {
    # slurm.conf has no quoting, and the path of a Unix socket ends at 107 characters.
    [[ $DIR =~ ^/[A-Za-z0-9._/-]+$ && ${#DIR} -le 80 ]] ||
        die "WELLREAD_SLURM_DIR=$DIR: take a shorter path of letters, digits and ._-" 2
    if [[ -d $DIR && ! -e $STAMP && -n $(ls -A "$DIR") ]]; then
        die "$DIR holds something else than this cluster: set WELLREAD_SLURM_DIR to another folder" 2
    fi
    # A stranger's folder under /var/tmp could swap the files of root's daemons.
    [[ ! -e $DIR || -O $DIR ]] || die "$DIR belongs to another user: set WELLREAD_SLURM_DIR to a folder of your own" 2
}

# One script at a time: two that start or stop the cluster together would undo each other's work.
lock() {
    mkdir -p "${DIR%/*}/"
    exec 9<"${DIR%/*}/"
    flock --wait 180 9 || die "another start or stop of the cluster takes more than 180 s"
}

form() { cat "$STAMP" 2>/dev/null || true; }

pid_of() { cat "$DIR/run/$1.pid" 2>/dev/null || true; }

# A pid can be used again by a stranger, who does not write into this daemon's log.
alive() {
    local pid
    pid=$(pid_of "$1")
    [[ -n $pid && $(readlink "/proc/$pid/fd/1") == "$DIR/log/$1.out" ]]
}

# Start a daemon in the background with its own log and a bare environment, and note its pid: start NAME COMMAND…
start() {
    local name=$1
    shift
    # The log is opened before the daemon's process begins, so that `alive` holds from its first moment.
    {
        (
            cd "$DIR" || exit
            exec 9>&- setsid env -i PATH="$PATH" LANG=C.UTF-8 SLURM_CONF="$CONF" "$@"
        ) &
    } </dev/null >>"$DIR/log/$name.out" 2>&1
    echo $! >"$DIR/run/$name.pid"
}

start_node() {
    local node=$1
    if [[ $(form) == hosts ]]; then
        # Not `ip netns exec`: that hides /sys/fs/cgroup from the jobs.
        # shellcheck disable=SC2016
        start "slurmd-$node" nsenter --net="/run/netns/$(namespace "$node")" \
            unshare --uts sh -c 'hostname "$1"; exec slurmd -D -N "$1" -f "$2"' sh "$node" "$CONF"
    else
        start "slurmd-$node" slurmd -D -N "$node" -f "$CONF"
    fi
}

# The cluster's own processes, one pid a line: its daemons, all in the nodes' networks, and all that its jobs started.
own_processes() {
    { own_daemons; own_tasks; own_hosts; } 2>/dev/null | sort -un
}

# Whoever follows a log has it open too: the program's name tells them apart.
own_daemons() {
    local pid
    for pid in $(find /proc/[0-9]*/fd -lname "$DIR/log/*" | cut -d/ -f3 | sort -u); do
        if grep -qxE 'munged|mariadbd|slurm(d|dbd|ctld|stepd|scriptd)' "/proc/$pid/comm"; then echo "$pid"; fi
    done
}

# SLURM_CONF alone is in the user's own shell as well; only tasks of a job have SLURMD_NODENAME too.
own_tasks() {
    grep -lzxF "SLURM_CONF=$CONF" /proc/[0-9]*/environ | xargs -r grep -lz '^SLURMD_NODENAME=' | cut -d/ -f3
}

own_hosts() {
    local node
    for node in "${NODES[@]}"; do host_processes "$node"; done
}

host_processes() { if own_namespace "$1"; then ip netns pids "$(namespace "$1")" || true; fi; }

# End the processes that a command lists: stop_all COMMAND…; three seconds after asking them they are made to.
stop_all() {
    local signal
    for signal in TERM KILL KILL; do
        "$@" | xargs -r kill -"$signal" 2>/dev/null || true
        await_none 3 "$@" && return
    done
    die "these processes of the cluster do not end: $("$@" | tr '\n' ' ')"
}

await_none() {
    local end=$((SECONDS + $1))
    shift
    while [[ -n $("$@") ]]; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# Bridge, cables and namespaces carry the folder's name, so that no cluster takes down the network of another.
own_link() { [[ $(cat "/sys/class/net/$1/ifalias" 2>/dev/null) == "$DIR" ]]; }
own_namespace() { ip -n "$(namespace "$1")" link show lo 2>/dev/null | grep -qxF "    alias $DIR"; }

unplug_network() {
    local node link
    for node in "${NODES[@]}"; do
        if own_namespace "$node"; then ip netns delete "$(namespace "$node")"; fi
    done
    # A cable goes with its namespace, but not always at once.
    for link in "${NODES[@]/#/wr-}" "$BRIDGE"; do
        if own_link "$link"; then ip link delete "$link" 2>/dev/null || true; fi
    done
}
