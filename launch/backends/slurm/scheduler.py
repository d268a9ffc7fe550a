"""The doctor's checks of SLURM itself, before it starts a job."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from launch.backends.slurm import jobs
from launch.checks.check import Check, State
from launch.cluster import ClusterFile
from wellread.provenance import ROOT
from wellread.run import RunDirectory

SECONDS_TO_ANSWER = 20
USABLE = {"idle", "mixed", "allocated", "completing", "planned"}


@dataclass(frozen=True)
class Node:
    """A node as reported by sinfo."""

    name: str
    state: str
    reason: str

    @property
    def usable(self) -> bool:
        """Whether jobs can run there, now or later."""
        return self.state in USABLE

    @property
    def free(self) -> bool:
        """Whether a small job could start there now."""
        return self.state in ("idle", "mixed")


def ask(*command: str) -> tuple[int, str, str]:
    """Run one of SLURM's commands; return its exit code, output and last error line."""
    try:
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS_TO_ANSWER, check=False
        )
    except FileNotFoundError:
        return 127, "", f"{command[0]} is not installed here"
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]} gave no answer within {SECONDS_TO_ANSWER} s"
    errors = [re.sub(r"^\w+: ((error|fatal): )?", "", line) for line in result.stderr.splitlines() if line.strip()]
    return result.returncode, result.stdout.strip(), " ".join(errors[-1:])


def scheduler(where: str) -> Check:
    """Check that the controller answers."""
    code, output, error = ask("scontrol", "ping")
    if code == 127:
        remedy = "log in to a node of the cluster, or use --cluster local"
        return Check(check="scheduler", where=where, state="failed", found=error, remedy=remedy)
    if code or "is UP" not in output:
        problem = error or output.splitlines()[0]
        remedy = "check systemctl status slurmctld on its node, and that SLURM_CONF is the path of slurm.conf"
        return Check(check="scheduler", where=where, state="failed", found=problem, remedy=remedy)
    return Check(check="scheduler", where=where, state="ok", found=output.splitlines()[0])


def membership(cluster: ClusterFile) -> list[Check]:
    """Check that partition, account and QOS of the cluster file exist."""
    checks = [_partition(cluster)]
    user = getpass.getuser()
    if cluster.account:
        command = ("sacctmgr", "-nP", "list", "associations", f"user={user}", "format=account")
        checks.append(_in_accounting(cluster, "account", cluster.account, command, f"accounts of {user}"))
    if cluster.qos:
        checks.append(
            _in_accounting(cluster, "qos", cluster.qos, ("sacctmgr", "-nP", "list", "qos", "format=name"), "known")
        )
    return checks


def _partition(cluster: ClusterFile) -> Check:
    code, output, error = ask("sinfo", "--noheader", "--format=%P|%a|%l")
    rows = [line.split("|") for line in output.splitlines()]
    partitions = {name.rstrip("*"): (up, limit) for name, up, limit in rows}
    default = next((name.rstrip("*") for name, _, _ in rows if name.endswith("*")), None)
    name = cluster.partition or default
    problem, remedy = "", ""
    if code:
        problem, remedy = error, "make sinfo work on this machine"
    elif name is None:
        problem = "not set in the cluster file, and the cluster has no default partition"
        remedy = f"set partition: to one of {', '.join(partitions)}"
    elif name not in partitions:
        problem, remedy = f"{name} does not exist", f"set partition: to one of {', '.join(partitions)}"
    elif partitions[name][0] != "up":
        problem, remedy = f"{name} is {partitions[name][0]}", "ask the cluster's administrators"
    if remedy:
        return Check(check="partition", where=cluster.name, state="failed", found=problem, remedy=remedy)
    assert name
    text = f"{name}{' (default)' * (name == default)}, jobs up to {partitions[name][1]}"
    return Check(check="partition", where=cluster.name, state="ok", found=text)


def _in_accounting(cluster: ClusterFile, key: str, name: str, command: tuple[str, ...], kind: str) -> Check:
    """Check that a name exists in SLURM's accounting."""
    code, output, error = ask(*command)
    names = sorted(set(output.split()))
    state: State = "warning" if code else "ok" if name in names else "failed"
    text = {
        "warning": f"{name} cannot be looked up: {error}",
        "failed": f"{name} does not exist; {kind}: {', '.join(names) or 'none'}",
    }.get(state, name)
    remedy = {"warning": "ask the cluster's administrators", "failed": f"correct {key}: in the cluster file"}
    return Check(check=key, where=cluster.name, state=state, found=text, remedy=remedy.get(state, ""))


def nodes_of(cluster: ClusterFile) -> list[Node]:
    """Return the nodes of the cluster file's partition, else of the default partition."""
    _, partitions, _ = ask("sinfo", "--noheader", "--format=%P")
    default = next((name.rstrip("*") for name in partitions.split() if name.endswith("*")), None)
    partition = cluster.partition or default
    only = [f"--partition={partition}"] if partition else []
    _, output, _ = ask("sinfo", "--noheader", "--Node", "--format=%N|%T|%E", *only)
    by_name = {}
    for line in output.splitlines():
        name, state, reason = line.split("|", 2)
        # A star marks a node that does not respond; other marks (~ # % …) nodes that are powered down or starting.
        word = "not responding" if state.endswith("*") else state.rstrip("~#!%$@^-+")
        by_name[name] = Node(name, word, "" if reason.lower() in ("none", word) else reason)
    return list(by_name.values())


def nodes(cluster: ClusterFile, listed: list[Node], count: int) -> Check:
    """Check the states of the nodes."""
    counts = Counter(node.state for node in listed)
    text = f"{len(listed)}: " + ", ".join(f"{number} {state}" for state, number in counts.most_common())
    out = [node for node in listed if not node.usable]
    text += "".join(f"; {node.name} {node.state}" + f" ({node.reason})" * bool(node.reason) for node in out[:3])
    state: State = "ok"
    remedy = ""
    if len(listed) - len(out) < count:
        state, remedy = "failed", f"--nodes {count} needs more usable nodes: scontrol update NodeName=… State=RESUME"
    elif out:
        state, remedy = "warning", "sinfo -R shows why; scontrol update NodeName=… State=RESUME enables a node again"
    elif sum(node.free for node in listed) < count:
        state, remedy = "warning", "wait: jobs start when others end"
    return Check(check="nodes", where=cluster.name, state=state, found=text, remedy=remedy)


def submission(cluster: ClusterFile, count: int, runs: Path) -> Check:
    """Check that SLURM would accept a job with the settings of the cluster file, without submitting one."""
    ranks = cluster.ranks_per_node or cluster.gpus_of(count) or 1
    options = jobs.parameters(
        cluster, name="wellread-doctor", nodes=count, ranks_per_node=ranks, code=ROOT, whole_memory=True
    )
    text = jobs.sbatch_text(cluster, RunDirectory(runs / "doctor"), options)
    try:
        result = subprocess.run(
            ["sbatch", "--test-only"],
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS_TO_ANSWER,
            check=False,
        )
        code, errors = result.returncode, result.stderr
    except subprocess.TimeoutExpired:
        code, errors = 1, f"sbatch gave no answer within {SECONDS_TO_ANSWER} s"
    words = " ".join(line.split(":", 1)[-1].strip() for line in errors.splitlines()[-1:])
    if code:
        remedy = "compare memory, gres, time, constraint … in the cluster file with sinfo --Node --long"
        problem = f"SLURM would reject {count} nodes x {ranks} ranks: {words}"
        return Check(check="submission", where=cluster.name, state="failed", found=problem, remedy=remedy)
    when = re.search(r"to start at (\S+).* on nodes? (\S+)", words)
    about = f"; it would start at {when[1]} on {when[2]}" if when else ""
    return Check(
        check="submission", where=cluster.name, state="ok", found=f"SLURM would accept {count} x {ranks} ranks{about}"
    )
