#!/usr/bin/env bash
# Start a SLURM cluster for development on this machine: controller, accounting database and two nodes, n1 and n2.
#
#   eval "$(make -s slurm-up)"      then sbatch, srun, squeue, sacct … talk to this cluster; again: says it is up
#   make slurm-down                 stops it and removes all of it
#   scripts/slurm_up.sh [--yes]     --yes: install missing Debian packages without asking, as CI=true does
#
# As root each node is a host of its own: a host name, an address, and a cable that scripts/slurm_node.sh can cut.
# Without root or network namespaces both nodes share the machine's name and network.
# Everything lies in WELLREAD_SLURM_DIR (default /var/tmp/wellread-slurm); /etc/slurm and the services of the machine
# stay as they are, only /etc/hosts gets two marked lines until slurm-down.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm_lib.sh
source "$here/slurm_lib.sh"

PACKAGES=(slurm-wlm munge mariadb-server slurmdbd iproute2)
COMMANDS=(munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch sacctmgr ip)
SERVICES=(slurmctld slurmd slurmdbd mariadb munge)
CONTROLLER_PORT=16817  # SLURM's own ports plus 10000: a SLURM that runs here already keeps its own
DATABASE_PORT=16819
NODE_PORT=16820        # plus the node's number where both share an address
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
    ((EUID == 0)) || die "SLURM is not installed, and only root can: $remedy" 2
    consent "$remedy"
    say "installing ${PACKAGES[*]}"
    local before
    before=$(known_services)
    without_starting_services install_packages
    disable_services_except "$before"
    have_all || die "packages installed, but one of these commands is missing: ${COMMANDS[*]}"
}

consent() {
    [[ ${CI:-} == true || $yes == 1 ]] && return
    [[ -t 0 ]] || die "SLURM is not installed and there is no terminal to ask: pass --yes, or set CI=true, for $1" 2
    local answer
    read -r -p "${0##*/}: SLURM is not installed. Run $1? [y/N] " answer
    [[ $answer == [yY]* ]] || die "nothing installed, nothing started" 2
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends --no-upgrade "${PACKAGES[@]}" </dev/null >/dev/null
}

# Debian starts the services of new packages unless this file forbids it; one that is there already is left alone.
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

known_services() {
    local service
    for service in "${SERVICES[@]}"; do
        if [[ -e /etc/init.d/$service || -e /lib/systemd/system/$service.service ]]; then echo "$service"; fi
    done
}

# Nor shall a database and a munged nobody asked for appear with the machine's next start.
disable_services_except() {
    local service
    for service in $(known_services); do
        grep -qx "$service" <<<"$1" && continue
        service "$service" stop >/dev/null 2>&1 || true
        update-rc.d "$service" disable >/dev/null 2>&1 || true
    done
}

# ---- network

# A bridge, and for each node a network of its own with a cable to it; fails where namespaces are missing.
plug_network() {
    local node
    unshare --uts --net true &&
        ip link add "$BRIDGE" type bridge &&
        ip link set "$BRIDGE" alias "$DIR" &&
        ip address add "$NETWORK.1/24" dev "$BRIDGE" &&
        ip link set "$BRIDGE" up || return 1
    for node in "${NODES[@]}"; do plug_node "$node" || return 1; done
}

plug_node() {
    local space cable
    space=$(namespace "$1") cable=$(veth "$1")
    ip netns add "$space" &&
        ip -n "$space" link set lo alias "$DIR" up &&
        ip link add "$cable" type veth peer name eth0 netns "$space" &&
        ip link set "$cable" alias "$DIR" master "$BRIDGE" up &&
        ip -n "$space" address add "$(address "$1")/24" dev eth0 &&
        ip -n "$space" link set eth0 up
}

nodes_meet() {
    [[ $(form) != hosts ]] ||
        timeout 5 nsenter --net="/run/netns/$(namespace n1)" bash -c "</dev/tcp/$(address n2)/$NODE_PORT" 2>/dev/null
}

# Jobs look up each other's host name, and SLURM leaves that to the machine.
name_nodes() {
    local node
    [[ -z $(tail -c 1 /etc/hosts) ]] || echo >>/etc/hosts  # its last line may lack an end
    for node in "${NODES[@]}"; do
        echo "$(address "$node") $node $HOSTS_MARK" >>/etc/hosts
    done
    for node in "${NODES[@]}"; do
        [[ $(getent hosts "$node" | cut -d' ' -f1) == "$(address "$node")" ]] ||
            die "the name $node already means something else on this machine: $(getent hosts "$node")"
    done
}

choose_form() {
    if ((EUID == 0)) && plug_network 2>>"$DIR/log/network.out"; then
        echo hosts >"$STAMP"
        name_nodes
    else
        say "both nodes share this machine's name and network: $(tail -n 1 "$DIR/log/network.out" 2>/dev/null ||
            echo "only root can give them their own")"
        unplug_network
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
    # Both slurmd share the machine's memory: 45 % each leaves a tenth to everything else.
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
# Not in run/: a daemon empties its file before it writes it, which would look like a daemon that stopped.
SlurmctldPidFile=$DIR/state/slurmctld.pid
SlurmdPidFile=$DIR/spool-%n/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
MailProg=/bin/true

# Containers seldom have cgroups to give away: processes are found by their parents, and nothing is pinned.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Otherwise a job that asks for no memory gets all of a node's.
DefMemPerCPU=$((memory / CPUS))
# A node has as many CPUs as written below, however few the machine has.
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
# Not a password: the munge socket to use towards slurmdbd.
AccountingStoragePass=$DIR/munge/socket
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5

${nodes}PartitionName=dev Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

# Nothing here uses cgroups, but slurmd stops when it finds none, or version 2 without systemd. Told that there is
# version 1, it looks no further.
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

# The words that make root start a program as another user; none for anybody else.
as() { ((EUID != 0)) || echo setpriv "--reuid=$1" "--regid=$1" --clear-groups; }

# shellcheck disable=SC2046  # the words of `as` are to be split
start_munged() {
    local own="$DIR/munge"
    # The key's secrecy is what keeps other users of this machine from posing as root in the cluster.
    (umask 077 && head -c 128 /dev/urandom >"$own/key")
    ((EUID != 0)) || chown munge: "$own/key"
    start munged $(as munge) munged --foreground --key-file="$own/key" --socket="$own/socket" \
        --pid-file="$own/pid" --log-file="$own/munged.log" --seed-file="$own/seed"
    await 10 munged test -S "$own/socket"
}

# shellcheck disable=SC2046
start_mariadbd() {
    local own="$DIR/mariadb"
    $(as mysql) mariadb-install-db --no-defaults --datadir="$own/data" --skip-test-db \
        --auth-root-authentication-method=socket --auth-root-socket-user="$(id -un)" \
        >"$DIR/log/mariadb-install.out" 2>&1 || fail "mariadb-install-db failed" mariadb-install.out
    # Waiting for the disk at each job's end buys nothing: slurm-down removes the database anyway.
    start mariadbd $(as mysql) mariadbd --no-defaults --datadir="$own/data" --socket="$own/socket" \
        --pid-file="$own/pid" --skip-networking --innodb-buffer-pool-size=64M \
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
    await 30 mariadbd mariadb --no-defaults --socket="$own/socket" -e 'CREATE DATABASE IF NOT EXISTS slurm'
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

# Repeat a command until it succeeds, at most SECONDS, while the daemon lives: await SECONDS DAEMON COMMAND…
await() {
    local end=$((SECONDS + $1)) daemon=$2
    shift 2
    until SLURM_CONF="$CONF" timeout 15 "$@" >/dev/null 2>&1; do
        alive "$daemon" || fail "$daemon stopped" "$daemon.out" "$daemon.log"
        ((SECONDS < end)) || fail "$daemon does not answer ($*)" "$daemon.out" "$daemon.log"
        sleep 0.2
    done
}

# Stop with a message and the last lines of the logs that may say why; the daemons stay, to be looked at.
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

# Up means that a job could start there now or after the jobs before it; a star is a node that does not answer.
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

# A test may have left a node cut off, killed or drained: that needs no new cluster.
recover() {
    all_alive munged mariadbd slurmdbd slurmctld || return 1
    all_alive "${NODES[@]/#/slurmd-}" && nodes_ready && return
    say "a node is out of service: mending it"
    local node
    for node in "${NODES[@]}"; do "$here/slurm_node.sh" mend "$node" || true; done
    await_nodes 30
}

# Addresses and ports are fixed, so that there is one such cluster on a machine.
check_bridge() {
    local alias=/sys/class/net/$BRIDGE/ifalias other
    [[ -e $alias ]] || return 0
    other=$(cat "$alias")
    die "another cluster is up; stop it first: make slurm-down WELLREAD_SLURM_DIR=$other" 2
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
    # A firewall that also filters bridges (Docker's) lets the nodes reach the controller, but not each other.
    nodes_meet || fail "n1 does not reach n2; with Docker: sysctl net.bridge.bridge-nf-call-iptables=0"
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
        say "already up in $DIR: ${NODES[*]}"
    else
        "$here/slurm_down.sh" --locked
        bring_up
        say "up after $SECONDS s: ${NODES[*]}, $CPUS CPUs each"
    fi
    echo "export SLURM_CONF=$CONF"
}

main "$@"
