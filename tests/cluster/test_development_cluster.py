"""The scripts of the development cluster: what they refuse, and what the cluster that they start can do.

The tests marked `slurm` use the cluster that ``eval "$(make -s slurm-up)"`` has started. It still works afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.programs import ROOT, missing
from support.waiting import PATIENCE, wait_until

SCRIPTS = ROOT / "scripts"
NAMES = ("slurm_lib.sh", "slurm_up.sh", "slurm_down.sh", "slurm_node.sh")
NETWORK = "10.77.0"


def call(*command: object) -> str:
    """Run a command that must succeed, and return its stdout."""
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 0, f"{command} gave {result.returncode}: {result.stdout}{result.stderr}"
    return result.stdout


# ---- without a cluster


@pytest.mark.parametrize("name", NAMES)
def test_a_script_parses(name: str) -> None:
    call("bash", "-n", SCRIPTS / name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "slurm_lib.sh"])
def test_help_starts_nothing(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    result = subprocess.run(
        [SCRIPTS / name, "--help"],
        env=os.environ | {"WELLREAD_SLURM_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert name in result.stdout or f"make {name.removesuffix('.sh').replace('_', '-')}" in result.stdout
    assert not result.stdout.startswith("#")
    assert not folder.exists()


def test_nothing_is_installed_without_consent(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "realpath", "cat", "ls", "env"):  # no SLURM commands
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "apt-get").write_text(f"#!/bin/sh\ntouch {tmp_path}/installed\n")
    (tools / "apt-get").chmod(0o755)
    env = {"PATH": str(tools), "WELLREAD_SLURM_DIR": str(tmp_path / "cluster")}
    result = subprocess.run(
        [SCRIPTS / "slurm_up.sh"], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "apt-get install slurm-wlm munge mariadb-server slurmdbd iproute2" in result.stderr
    assert not (tmp_path / "installed").exists()
    assert not (tmp_path / "cluster").exists()


@pytest.mark.parametrize("script", ["slurm_up.sh", "slurm_down.sh"])
def test_a_folder_with_other_files_is_not_touched(script: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = subprocess.run(
        [SCRIPTS / script],
        env=os.environ | {"WELLREAD_SLURM_DIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# ---- with the cluster


def states() -> dict[str, str]:
    """State of each node in sinfo. A star at its end means that the node does not answer."""
    return dict(line.split() for line in call("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines())


def job_state(job: str) -> str:
    """State of a job that the controller still knows: PENDING, RUNNING, COMPLETED, …"""
    return call("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").strip()


def in_service() -> bool:
    return set(states().values()) <= {"idle", "mixed", "allocated", "completing"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """The running cluster. Both nodes are in service before and after the tests."""
    config = Path(os.environ.get("WELLREAD_SLURM_DIR", "/var/tmp/wellread-slurm")) / "slurm.conf"
    if os.environ.get("SLURM_CONF") != str(config):  # never a cluster where other people compute
        missing('the development cluster is not set: eval "$(make -s slurm-up)"')
    wait_until(in_service, "both nodes in service")
    yield
    wait_until(in_service, "both nodes in service again")


@pytest.fixture
def hosts(cluster: None) -> None:
    """The cluster, if its nodes have their own network, so that a node can be disconnected."""
    if f"NodeAddr={NETWORK}.11" not in call("scontrol", "show", "node", "n1"):
        missing("the nodes share this machine's network: the cluster was started without root or network namespaces")


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submit a one-line job with flags of sbatch and return its id. Jobs that still run at the end are cancelled."""
    jobs: list[str] = []

    def sbatch(line: str, *flags: str) -> str:
        output = f"--output={tmp_path}/%A.%a.out"
        jobs.append(call("sbatch", "--parsable", f"--chdir={tmp_path}", output, *flags, "--wrap", line).strip())
        return jobs[-1]

    yield sbatch
    for job in jobs:
        call("scancel", job)


@pytest.mark.slurm
def test_each_node_is_a_host_with_a_name_and_an_address(hosts: None) -> None:
    task = 'echo "$(hostname) $(getent ahostsv4 $(hostname) | head -1)"; getent hosts n1 n2 >/dev/null'
    lines = sorted(call("srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", task).splitlines())
    assert [line.split()[:2] for line in lines] == [["n1", f"{NETWORK}.11"], ["n2", f"{NETWORK}.12"]]


@pytest.mark.slurm
def test_one_node_reaches_a_port_of_the_other(hosts: None) -> None:
    listen = "import socket; s = socket.create_server(('', 29777)); s.settimeout(20); s.accept()[0].sendall(b'read')"
    connect = (
        "import socket, time\n"
        "for _ in range(100):\n"
        "    try: print(socket.create_connection(('n1', 29777), 5).recv(9).decode()); break\n"
        "    except ConnectionRefusedError: time.sleep(0.1)\n"
    )
    task = f'if [ $(hostname) = n1 ]; then python3 -c "{listen}"; else python3 -c "{connect}"; fi'
    assert call("srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", task).strip() == "read"


@pytest.mark.slurm
def test_two_nodes_run_two_tasks_each(cluster: None) -> None:
    lines = call("srun", "--nodes=2", "--ntasks-per-node=2", "printenv", "SLURMD_NODENAME").split()
    assert sorted(lines) == ["n1", "n1", "n2", "n2"]


@pytest.mark.slurm
def test_sacct_shows_state_exit_code_and_memory(cluster: None, submit: Callable[..., str]) -> None:
    # 100 MiB for 7 s: the accounting samples memory every 5 s.
    job = submit("python3 -c 'import time; kept = b\"x\" * (100 << 20); time.sleep(7)'; exit 3")

    def rows() -> list[str]:
        return call("sacct", "--noheader", "--parsable2", f"--jobs={job}", "--format=State,ExitCode,MaxRSS").split()

    wait_until(lambda: sum(row.startswith("FAILED|3:0") for row in rows()) == 2, "sacct has the finished job")
    kibibytes = int(rows()[1].split("|")[2].removesuffix("K"))
    assert 100 * 1024 < kibibytes < 200 * 1024


@pytest.mark.slurm
def test_a_requeued_job_starts_again_without_delay_if_asked(
    cluster: None, submit: Callable[..., str], tmp_path: Path
) -> None:
    job = submit('echo start ${SLURM_RESTART_COUNT:-0}; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600', "--requeue")
    wait_until(lambda: job_state(job) == "RUNNING", "running")
    call("scontrol", "requeue", job)
    wait_until(lambda: job_state(job) == "PENDING", "pending again")
    # A node refuses a job that starts in the same second in which it ended before ("Job credential revoked").
    time.sleep(2)
    call("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_until(lambda: job_state(job) == "COMPLETED", "completed")
    assert next(tmp_path.glob(f"{job}.*out")).read_text().strip().endswith("start 1")


@pytest.mark.slurm
def test_an_array_job_runs_each_of_its_tasks(cluster: None, submit: Callable[..., str], tmp_path: Path) -> None:
    job = submit("echo task $SLURM_ARRAY_TASK_ID", "--array=0-5%3", "--mem=100")
    wait_until(lambda: job_state(job).split() == ["COMPLETED"] * 6, "all tasks completed")
    outputs = [(tmp_path / f"{job}.{task}.out").read_text().strip() for task in range(6)]
    assert outputs == [f"task {task}" for task in range(6)]


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.slow
def test_a_node_without_network_is_lost_until_the_network_is_back(hosts: None) -> None:
    call(SCRIPTS / "slurm_node.sh", "cut", "n2")
    try:
        wait_until(lambda: states()["n2"].endswith("*"), "n2 does not answer")
        assert not states()["n1"].endswith("*")
    finally:
        call(SCRIPTS / "slurm_node.sh", "restore", "n2")
    wait_until(in_service, "n2 is back")
    assert call("srun", "--nodelist=n2", "hostname").strip() == "n2"


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.slow
def test_a_killed_node_loses_its_tasks_and_can_be_restarted(hosts: None, submit: Callable[..., str]) -> None:
    job = submit("sleep 600", "--nodelist=n2", "--no-requeue")
    wait_until(lambda: job_state(job) == "RUNNING", "running")
    try:
        call(SCRIPTS / "slurm_node.sh", "kill", "n2")
        assert call("ip", "netns", "pids", "wellread-n2") == ""
    finally:
        call(SCRIPTS / "slurm_node.sh", "restore", "n2")
    wait_until(lambda: job_state(job) == "NODE_FAIL", "the job failed with its node")
    wait_until(in_service, "n2 is back")


@pytest.mark.slurm
def test_starting_a_running_cluster_only_prints_its_configuration(cluster: None) -> None:
    result = subprocess.run([SCRIPTS / "slurm_up.sh"], capture_output=True, text=True, check=True)
    assert result.stdout == f"export SLURM_CONF={os.environ['SLURM_CONF']}\n"
    assert "already running" in result.stderr
