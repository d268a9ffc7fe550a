#!/usr/bin/env bash
# Start a SLURM cluster for development on this machine: controller, accounting database and two nodes, n1 and n2.
#
#   eval "$(make -s slurm-up)"      then sbatch, srun, squeue, sacct … use this cluster; can be repeated
#   make slurm-down                 stop the cluster and remove its files
#   scripts/slurm_up.sh [--yes]     --yes: install missing Debian packages without asking, as CI=true does
#
# As root, each node is a separate host: it has a host name, an address, and a network cable that
# scripts/slurm_node.sh can cut. Without root or network namespaces, both nodes share the machine's name and network.
# All files are in WELLREAD_SLURM_DIR (default /var/tmp/wellread-slurm). /etc/slurm and the services of the machine do
# not change; /etc/hosts gets two marked lines, which slurm-down removes.
set -euo pipefail
scripts=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm_lib.sh
source "$scripts/slurm_lib.sh"

PACKAGES=(slurm-wlm munge mariadb-server slurmdbd iproute2)
COMMANDS=(munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch sacctmgr ip)
SERVICES=(slurmctld slurmd slurmdbd mariadb munge)
CONTROLLER_PORT=16817  # SLURM's default ports plus 10000, which a SLURM already on this machine does not use
DATABASE_PORT=16819
NODE_PORT=16820        # plus the node's number if both nodes share an address
CPUS=4
WAIT_S=90

# ---- packages

have_all() {
    local command
    for command in "${COMMANDS[@]}"; do
        command -v "$command" >/dev/null || return 1
    done
}

install_missing() {
    have_all && return
    local remedy="apt-get install ${PACKAGES[*]}"
    command -v apt-get >/dev/null || die "SLURM is not installed; on Debian: $remedy" 2
    ((EUID == 0)) || die "SLURM is not installed; run as root: $remedy" 2
    consent "$remedy"
    say "installing ${PACKAGES[*]}"
    local before
    before=$(existing_services)
    without_starting_services install_packages
    disable_services_except "$before"
    have_all || die "the packages are installed, but one of these commands is missing: ${COMMANDS[*]}"
}

consent() {
    [[ ${CI:-} == true || $yes == 1 ]] && return
    [[ -t 0 ]] || die "SLURM is not installed, and there is no terminal to ask: pass --yes or set CI=true to run $1" 2
    local answer
    read -r -p "${0##*/}: SLURM is not installed. Run $1? [y/N] " answer
    [[ $answer == [yY]* ]] || die "nothing was installed or started" 2
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends --no-upgrade "${PACKAGES[@]}" </dev/null >/dev/null
}

# Debian starts the services of new packages unless this file forbids it; an existing file is not changed.
without_starting_services() {
    local policy=/usr/sbin/policy-rc.d
    if [[ -e $policy ]]; then "$@"; return; fi
    # shellcheck disable=SC2064
    trap "rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    "$@"
    rm -f "$policy"
    trap - EXIT
}

existing_services() {
    local service
    for service in "${SERVICES[@]}"; do
        if [[ -e /etc/init.d/$service || -e /lib/systemd/system/$service.service ]]; then echo "$service"; fi
    done
}

# The new services, such as a database and munged, must not start when the machine boots.
disable_services_except() {
    local service
    for service in $(existing_services); do
        grep -qx "$service" <<<"$1" && continue
        service "$service" stop >/dev/null 2>&1 || true
        update-rc.d "$service" disable >/dev/null 2>&1 || true
    done
}

# ---- network

# Create a bridge and, for each node, a network namespace with a cable to the bridge; fails without namespaces.
create_network() {
    local node
    unshare --uts --net true &&
        ip link add "$BRIDGE" type bridge &&
        ip link set "$BRIDGE" alias "$DIR" &&
        ip address add "$NETWORK.1/24" dev "$BRIDGE" &&
        ip link set "$BRIDGE" up || return 1
    for node in "${NODES[@]}"; do connect_node "$node" || return 1; done
}

connect_node() {
    local space cable
    space=$(namespace "$1") cable=$(veth "$1")
    ip netns add "$space" &&
        ip -n "$space" link set lo alias "$DIR" up &&
        ip link add "$cable" type veth peer name eth0 netns "$space" &&
        ip link set "$cable" alias "$DIR" master "$BRIDGE" up &&
        ip -n "$space" address add "$(address "$1")/24" dev eth0 &&
        ip -n "$space" link set eth0 up
}

nodes_connected() {
    [[ $(form) != hosts ]] ||
        timeout 5 nsenter --net="/run/netns/$(namespace n1)" bash -c "</dev/tcp/$(address n2)/$NODE_PORT" 2>/dev/null
}

# Jobs resolve the nodes' host names, for which SLURM relies on the machine.
add_host_names() {
    local node
    [[ -z $(tail -c 1 /etc/hosts) ]] || echo >>/etc/hosts  # its last line may have no line break
    for node in "${NODES[@]}"; do
        echo "$(address "$node") $node $HOSTS_MARK" >>/etc/hosts
    done
    for node in "${NODES[@]}"; do
        [[ $(getent hosts "$node" | cut -d' ' -f1) == "$(address "$node")" ]] ||
            die "the host name $node already has another address on this machine: $(getent hosts "$node")"
    done
}

choose_form() {
    if ((EUID == 0)) && create_network 2>>"$DIR/log/network.out"; then
        echo hosts >"$STAMP"
        add_host_names
    else
        say "both nodes share this machine's name and network: $(tail -n 1 "$DIR/log/network.out" 2>/dev/null ||
            echo "separate networks need root")"
        remove_network
        echo simple >"$STAMP"
    fi
}

# ---- configuration

make_folder() {
    mkdir -p "$DIR"
    echo starting >"$STAMP"
    chmod 755 "$DIR"
    mkdir -p "$DIR"/{run,log,state,munge,mariadb,spool-n1,spool-n2}
    if ((EUID == 0)); then
        chown munge: "$DIR/munge"
        chown mysql: "$DIR/mariadb"
    fi
    chmod 700 "$DIR/mariadb" "$DIR/state"
}

write_slurm_conf() {
    local controller=127.0.0.1 memory nodes="" node
    [[ $(form) == hosts ]] && controller=$NETWORK.1
    # Both nodes share the machine's memory: 45 % each leaves 10 % for other processes.
    memory=$(awk '/^MemTotal:/ {print int($2 / 1024 * 0.45)}' /proc/meminfo)
    for node in "${NODES[@]}"; do
        nodes+="NodeName=$node $(node_place "$node") CPUs=$CPUS Sockets=1 CoresPerSocket=$CPUS ThreadsPerCore=1"
        nodes+=" RealMemory=$memory State=UNKNOWN"$'\n'
    done
    cat >"$CONF" <<END
# Development cluster of wellread, written by scripts/slurm_up.sh; scripts/slurm_down.sh removes it.
ClusterName=wellread
SlurmctldHost=$(hostname -s)($controller)
SlurmctldPort=$CONTROLLER_PORT
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool-%n
# Not in run/: a daemon empties its file before writing it, and would look as if it had stopped.
SlurmctldPidFile=$DIR/state/slurmctld.pid
SlurmdPidFile=$DIR/spool-%n/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
MailProg=/bin/true

# Containers often have no writable cgroups: processes are tracked by their parents, and tasks are not pinned to CPUs.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Otherwise a job that requests no memory gets all memory of a node.
DefMemPerCPU=$((memory / CPUS))
# A node has the number of CPUs below, even if the machine has fewer.
SlurmdParameters=config_overrides

JobRequeue=1
ReturnToService=2
SlurmdTimeout=20
MessageTimeout=10
KillWait=30
PreemptType=preempt/none
# Finished jobs stay in scontrol for ten minutes.
MinJobAge=600
# A pending job starts within two seconds of a free node.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$controller
AccountingStoragePort=$DATABASE_PORT
# Not a password: the munge socket for connections to slurmdbd.
AccountingStoragePass=$DIR/munge/socket
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5

${nodes}PartitionName=dev Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

# This cluster uses no cgroups, but slurmd exits if it finds none, or version 2 without systemd. With version 1
# configured, it does not check.
write_cgroup_conf() { echo "CgroupPlugin=cgroup/v1" >"$DIR/cgroup.conf"; }

node_place() {
    if [[ $(form) == hosts ]]; then
        echo "NodeAddr=$(address "$1") Port=$NODE_PORT"
    else
        echo "NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((NODE_PORT + ${1#n}))"
    fi
}

write_slurmdbd_conf() {
    (umask 077 && cat >"$DIR/slurmdbd.conf") <<END
DbdHost=localhost
DbdPort=$DATABASE_PORT
SlurmUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$(id -un)
StorageLoc=slurm
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/state/slurmdbd.pid
END
}

# ---- daemons

# Command prefix with which root starts a program as another user; empty for other users.
as() { ((EUID != 0)) || echo setpriv "--reuid=$1" "--regid=$1" --clear-groups; }

# shellcheck disable=SC2046  # the output of `as` must be split into words
start_munged() {
    local folder="$DIR/munge"
    # With the key, another user of this machine could act as root in the cluster, so it is secret.
    (umask 077 && head -c 128 /dev/urandom >"$folder/key")
    ((EUID != 0)) || chown munge: "$folder/key"
    start munged $(as munge) munged --foreground --key-file="$folder/key" --socket="$folder/socket" \
        --pid-file="$folder/pid" --log-file="$folder/munged.log" --seed-file="$folder/seed"
    await 10 munged test -S "$folder/socket"
}

# shellcheck disable=SC2046
start_mariadbd() {
    local folder="$DIR/mariadb"
    $(as mysql) mariadb-install-db --no-defaults --datadir="$folder/data" --skip-test-db \
        --auth-root-authentication-method=socket --auth-root-socket-user="$(id -un)" \
        >"$DIR/log/mariadb-install.out" 2>&1 || fail "mariadb-install-db failed" mariadb-install.out
    # Flushing to disk at each job's end is not needed, because slurm-down removes the database.
    start mariadbd $(as mysql) mariadbd --no-defaults --datadir="$folder/data" --socket="$folder/socket" \
        --pid-file="$folder/pid" --skip-networking --innodb-buffer-pool-size=64M \
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
    await 30 mariadbd mariadb --no-defaults --socket="$folder/socket" -e 'CREATE DATABASE IF NOT EXISTS slurm'
}

start_slurmdbd() {
    start slurmdbd env MYSQL_UNIX_PORT="$DIR/mariadb/socket" slurmdbd -D
    await 30 slurmdbd sacctmgr --noheader show cluster
    SLURM_CONF="$CONF" sacctmgr --immediate --quiet add cluster wellread >/dev/null
}

start_slurmctld() {
    start slurmctld slurmctld -D -f "$CONF"
    await 30 slurmctld scontrol ping
}

# Repeat a command until it succeeds, for at most SECONDS while the daemon runs: await SECONDS DAEMON COMMAND…
await() {
    local end=$((SECONDS + $1)) daemon=$2
    shift 2
    until SLURM_CONF="$CONF" timeout 15 "$@" >/dev/null 2>&1; do
        alive "$daemon" || fail "$daemon stopped" "$daemon.out" "$daemon.log"
        ((SECONDS < end)) || fail "$daemon does not answer ($*)" "$daemon.out" "$daemon.log"
        sleep 0.2
    done
}

# Exit with a message and the last lines of some logs; the daemons keep running, so that they can be examined.
fail() {
    local log
    say "$1; the logs are in $DIR/log"
    shift
    for log in "$@"; do
        [[ -s $DIR/log/$log ]] && { echo "--- $DIR/log/$log" && tail -n 8 "$DIR/log/$log"; } >&2
    done
    exit 1
}

# ---- health

# A node is ready if a job can start on it now or after other jobs; a state with a star means that it does not answer.
nodes_ready() {
    local states
    states=$(SLURM_CONF="$CONF" timeout 15 sinfo --noheader --Node --format=%T 2>/dev/null) || return 1
    [[ $(grep -cxE 'idle|mixed|allocated|completing' <<<"$states") == "${#NODES[@]}" ]]
}

await_nodes() {
    local end=$((SECONDS + $1))
    until nodes_ready; do
        ((SECONDS < end)) || return 1
        sleep 0.3
    done
}

all_alive() {
    local daemon
    for daemon in "$@"; do
        alive "$daemon" || return 1
    done
}

# A test may have left a node disconnected, killed or drained; restoring it is faster than a new cluster.
recover() {
    all_alive munged mariadbd slurmdbd slurmctld || return 1
    all_alive "${NODES[@]/#/slurmd-}" && nodes_ready && return
    say "a node is out of service; restoring it"
    local node
    for node in "${NODES[@]}"; do "$scripts/slurm_node.sh" restore "$node" || true; done
    await_nodes 30
}

# Addresses and ports are fixed, so only one such cluster can run on a machine.
check_bridge() {
    local alias=/sys/class/net/$BRIDGE/ifalias other
    [[ -e $alias ]] || return 0
    other=$(cat "$alias")
    die "another cluster is running; stop it first: make slurm-down WELLREAD_SLURM_DIR=$other" 2
}

bring_up() {
    check_bridge
    make_folder
    choose_form
    write_slurm_conf
    write_cgroup_conf
    write_slurmdbd_conf
    say "starting munged, mariadbd, slurmdbd, slurmctld and ${NODES[*]} in $DIR"
    start_munged
    start_mariadbd
    start_slurmdbd
    start_slurmctld
    local node
    for node in "${NODES[@]}"; do start_node "$node"; done
    await_nodes "$WAIT_S" ||
        fail "${NODES[*]} are not idle after $WAIT_S s" slurmctld.log slurmd-n{1,2}.log slurmd-n{1,2}.out
    # A firewall that also filters bridges, such as Docker's, blocks traffic between nodes, but not to the controller.
    nodes_connected || fail "n1 cannot connect to n2; with Docker, run: sysctl net.bridge.bridge-nf-call-iptables=0"
}

main() {
    yes=0
    case "${1:-}" in
        --help | -h) help_text; return ;;
        --yes | -y) yes=1 ;;
        "") ;;
        *) die "unknown argument $1; see scripts/slurm_up.sh --help" 2 ;;
    esac
    check_folder
    install_missing
    lock
    if recover; then
        say "already running in $DIR: ${NODES[*]}"
    else
        "$scripts/slurm_down.sh" --locked
        bring_up
        say "running after $SECONDS s: ${NODES[*]}, $CPUS CPUs each"
    fi
    echo "export SLURM_CONF=$CONF"
}

main "$@"
