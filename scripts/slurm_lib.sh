# shellcheck shell=bash disable=SC2034
# Shared by the scripts of the development SLURM cluster: its paths, its network, and how to find its processes.
# Sourced by slurm_up.sh, slurm_down.sh and slurm_node.sh; it only defines variables and functions.

PATH="$PATH:/usr/sbin:/sbin"
DIR=$(realpath -m -- "${WELLREAD_SLURM_DIR:-/var/tmp/wellread-slurm}")
CONF="$DIR/slurm.conf"
STAMP="$DIR/.wellread-slurm"  # only a folder with this file is removed; it contains the form: hosts or simple
HOSTS_MARK="# wellread-slurm $DIR"
BRIDGE=wr-br
NETWORK=10.77.0  # .1 is the controller, .11 is n1, .12 is n2
NODES=(n1 n2)

say() { echo "${0##*/}: $*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

# Address of a node, its network namespace, and the host's end of its cable (a pair of virtual network interfaces).
address() { echo "$NETWORK.1${1#n}"; }
namespace() { echo "wellread-$1"; }
veth() { echo "wr-$1"; }

help_text() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

check_folder() {
    # slurm.conf has no quoting, and the path of a Unix socket has at most 107 characters.
    [[ $DIR =~ ^/[A-Za-z0-9._/-]+$ && ${#DIR} -le 80 ]] ||
        die "WELLREAD_SLURM_DIR=$DIR: choose a path of at most 80 letters, digits and ._-" 2
    if [[ -d $DIR && ! -e $STAMP && -n $(ls -A "$DIR") ]]; then
        die "$DIR contains files that are not of this cluster: set WELLREAD_SLURM_DIR to another folder" 2
    fi
    # Another user who owns the folder under /var/tmp could replace the files of root's daemons.
    [[ ! -e $DIR || -O $DIR ]] || die "$DIR belongs to another user: set WELLREAD_SLURM_DIR to a folder that you own" 2
}

# One script at a time: scripts that start and stop the cluster at the same time would conflict.
lock() {
    mkdir -p "${DIR%/*}/"
    exec 9<"${DIR%/*}/"
    flock --wait 180 9 || die "timed out after 180 s waiting for another script that starts or stops the cluster"
}

form() { cat "$STAMP" 2>/dev/null || true; }

pid_of() { cat "$DIR/run/$1.pid" 2>/dev/null || true; }

# The kernel may reuse a pid for an unrelated process, but such a process does not write to this daemon's log.
alive() {
    local pid
    pid=$(pid_of "$1")
    [[ -n $pid && $(readlink "/proc/$pid/fd/1") == "$DIR/log/$1.out" ]]
}

# Start a daemon in the background with a log and a minimal environment, and save its pid: start NAME COMMAND…
start() {
    local name=$1
    shift
    # The log is opened before the daemon starts, so that `alive` is true from the beginning.
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
        # Not `ip netns exec`, because it hides /sys/fs/cgroup from the jobs.
        # shellcheck disable=SC2016
        start "slurmd-$node" nsenter --net="/run/netns/$(namespace "$node")" \
            unshare --uts sh -c 'hostname "$1"; exec slurmd -D -N "$1" -f "$2"' sh "$node" "$CONF"
    else
        start "slurmd-$node" slurmd -D -N "$node" -f "$CONF"
    fi
}

# Processes of the cluster, one pid per line: daemons, tasks of jobs, and all processes in the nodes' networks.
cluster_processes() {
    { daemon_processes; task_processes; node_processes; } 2>/dev/null | sort -un
}

# A program that only reads a log also has it open; the program's name distinguishes them.
daemon_processes() {
    local pid
    for pid in $(find /proc/[0-9]*/fd -lname "$DIR/log/*" | cut -d/ -f3 | sort -u); do
        if grep -qxE 'munged|mariadbd|slurm(d|dbd|ctld|stepd|scriptd)' "/proc/$pid/comm"; then echo "$pid"; fi
    done
}

# The user's shell also has SLURM_CONF, but only tasks of a job have SLURMD_NODENAME.
task_processes() {
    grep -lzxF "SLURM_CONF=$CONF" /proc/[0-9]*/environ | xargs -r grep -lz '^SLURMD_NODENAME=' | cut -d/ -f3
}

node_processes() {
    local node
    for node in "${NODES[@]}"; do processes_on "$node"; done
}

processes_on() { if has_namespace "$1"; then ip netns pids "$(namespace "$1")" || true; fi; }

# End the processes that a command lists: stop_all COMMAND…; SIGTERM first, SIGKILL after three seconds.
stop_all() {
    local signal
    for signal in TERM KILL KILL; do
        "$@" | xargs -r kill -"$signal" 2>/dev/null || true
        await_none 3 "$@" && return
    done
    die "processes of the cluster did not end: $("$@" | tr '\n' ' ')"
}

await_none() {
    local end=$((SECONDS + $1))
    shift
    while [[ -n $("$@") ]]; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# Bridge, cables and namespaces have the folder's name as alias, so that no cluster removes the network of another.
has_link() { [[ $(cat "/sys/class/net/$1/ifalias" 2>/dev/null) == "$DIR" ]]; }
has_namespace() { ip -n "$(namespace "$1")" link show lo 2>/dev/null | grep -qxF "    alias $DIR"; }

remove_network() {
    local node link
    for node in "${NODES[@]}"; do
        if has_namespace "$node"; then ip netns delete "$(namespace "$node")"; fi
    done
    # The kernel removes a cable with its namespace, but sometimes later.
    for link in "${NODES[@]/#/wr-}" "$BRIDGE"; do
        if has_link "$link"; then ip link delete "$link" 2>/dev/null || true; fi
    done
}
