"""The development cluster's scripts: what they refuse, and what the cluster they start can do.

The tests marked `slurm` use the cluster that ``eval "$(make -s slurm-up)"`` started, and leave it in service.
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

SCRIPTS = ROOT / "scripts"
NAMES = ("slurm_lib.sh", "slurm_up.sh", "slurm_down.sh", "slurm_node.sh")
NETWORK = "10.77.0"


def call(*command: object, timeout: float = 60) -> str:
    """Run a command that has to succeed, and return what it wrote to stdout."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{command} gave {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition holds; fails the test when it takes more than ``seconds``."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.3)
    return time.monotonic() - began


# ---- without a cluster


@pytest.mark.parametrize("name", NAMES)
def test_a_script_parses(name: str) -> None:
    call("bash", "-n", SCRIPTS / name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "slurm_lib.sh"])
def test_help_starts_nothing(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    done = subprocess.run(
        [SCRIPTS / name, "--help"],
        env=os.environ | {"WELLREAD_SLURM_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert name in done.stdout or f"make {name.removesuffix('.sh').replace('_', '-')}" in done.stdout
    assert not done.stdout.startswith("#")
    assert not folder.exists()


def test_nothing_is_installed_without_consent(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "realpath", "cat", "ls", "env"):  # a machine without SLURM's clients
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "apt-get").write_text(f"#!/bin/sh\ntouch {tmp_path}/installed\n")
    (tools / "apt-get").chmod(0o755)
    env = {"PATH": str(tools), "WELLREAD_SLURM_DIR": str(tmp_path / "cluster")}
    done = subprocess.run(
        [SCRIPTS / "slurm_up.sh"], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "apt-get install slurm-wlm munge mariadb-server slurmdbd iproute2" in done.stderr
    assert not (tmp_path / "installed").exists()
    assert not (tmp_path / "cluster").exists()


@pytest.mark.parametrize("script", ["slurm_up.sh", "slurm_down.sh"])
def test_a_folder_with_something_else_in_it_is_left_alone(script: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    done = subprocess.run(
        [SCRIPTS / script],
        env=os.environ | {"WELLREAD_SLURM_DIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# ---- with the cluster


def states() -> dict[str, str]:
    """State of each node as sinfo has it; a star behind it says that the node does not answer."""
    return dict(line.split() for line in call("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines())


def job_state(job: str) -> str:
    """PENDING, RUNNING, COMPLETED, …, of a job that the controller still knows."""
    return call("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").strip()


def in_service() -> bool:
    return set(states().values()) <= {"idle", "mixed", "allocated", "completing"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """The running cluster, with both nodes in service before and after."""
    own = Path(os.environ.get("WELLREAD_SLURM_DIR", "/var/tmp/wellread-slurm")) / "slurm.conf"
    if os.environ.get("SLURM_CONF") != str(own):  # never a cluster that others compute on
        missing('the development cluster is not set: eval "$(make -s slurm-up)"')
    wait_for("both nodes in service", in_service, 60)
    yield
    wait_for("both nodes in service again", in_service, 60)


@pytest.fixture
def hosts(cluster: None) -> None:
    """The cluster, whose nodes are hosts of their own and can be cut off."""
    if f"NodeAddr={NETWORK}.11" not in call("scontrol", "show", "node", "n1"):
        missing("the nodes share this machine's network: the cluster was started without root or namespaces")


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submit a one-line job with sbatch's flags and return its id; what still runs at the end is cancelled."""
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
def test_two_nodes_hold_two_tasks_each_on_any_machine(cluster: None) -> None:
    lines = call("srun", "--nodes=2", "--ntasks-per-node=2", "printenv", "SLURMD_NODENAME").split()
    assert sorted(lines) == ["n1", "n1", "n2", "n2"]


@pytest.mark.slurm
def test_sacct_tells_state_exit_code_and_memory(cluster: None, submit: Callable[..., str]) -> None:
    # 100 MiB kept for longer than one look of the accounting, which comes every 5 s.
    job = submit("python3 -c 'import time; kept = b\"x\" * (100 << 20); time.sleep(7)'; exit 3")

    def rows() -> list[str]:
        return call("sacct", "--noheader", "--parsable2", f"--jobs={job}", "--format=State,ExitCode,MaxRSS").split()

    wait_for("sacct has the finished job", lambda: sum(row.startswith("FAILED|3:0") for row in rows()) == 2, 40)
    kibibytes = int(rows()[1].split("|")[2].removesuffix("K"))
    assert 100 * 1024 < kibibytes < 200 * 1024


@pytest.mark.slurm
def test_a_requeued_job_starts_again_at_once_when_told(
    cluster: None, submit: Callable[..., str], tmp_path: Path
) -> None:
    job = submit('echo start ${SLURM_RESTART_COUNT:-0}; [ -n "$SLURM_RESTART_COUNT" ] || sleep 60', "--requeue")
    wait_for("running", lambda: job_state(job) == "RUNNING", 20)
    call("scontrol", "requeue", job)
    wait_for("pending again", lambda: job_state(job) == "PENDING", 20)
    # A node refuses what starts within the second in which it ended the job before ("Job credential revoked").
    time.sleep(2)
    call("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert wait_for("completed", lambda: job_state(job) == "COMPLETED", 30) < 20
    assert next(tmp_path.glob(f"{job}.*out")).read_text().strip().endswith("start 1")


@pytest.mark.slurm
def test_an_array_job_runs_each_of_its_tasks(cluster: None, submit: Callable[..., str], tmp_path: Path) -> None:
    job = submit("echo task $SLURM_ARRAY_TASK_ID", "--array=0-5%3", "--mem=100")
    wait_for("all tasks completed", lambda: job_state(job).split() == ["COMPLETED"] * 6, 30)
    outputs = [(tmp_path / f"{job}.{task}.out").read_text().strip() for task in range(6)]
    assert outputs == [f"task {task}" for task in range(6)]


@pytest.mark.slurm
@pytest.mark.slow
def test_a_cut_cable_loses_a_node_until_it_is_mended(hosts: None) -> None:
    call(SCRIPTS / "slurm_node.sh", "cut", "n2")
    try:
        wait_for("n2 does not answer", lambda: states()["n2"].endswith("*"), 45)
        assert not states()["n1"].endswith("*")
    finally:
        call(SCRIPTS / "slurm_node.sh", "restore", "n2")
    wait_for("n2 is back", in_service, 30)
    assert call("srun", "--nodelist=n2", "hostname").strip() == "n2"


@pytest.mark.slurm
@pytest.mark.slow
def test_a_killed_node_loses_its_tasks_and_is_started_again(hosts: None, submit: Callable[..., str]) -> None:
    job = submit("sleep 600", "--nodelist=n2", "--no-requeue")
    wait_for("running", lambda: job_state(job) == "RUNNING", 20)
    try:
        call(SCRIPTS / "slurm_node.sh", "kill", "n2")
        assert call("ip", "netns", "pids", "wellread-n2") == ""
    finally:
        call(SCRIPTS / "slurm_node.sh", "restore", "n2")
    wait_for("the job failed with its node", lambda: job_state(job) == "NODE_FAIL", 30)
    wait_for("n2 is back", in_service, 30)


@pytest.mark.slurm
def test_starting_a_running_cluster_again_only_names_it(cluster: None) -> None:
    began = time.monotonic()
    done = subprocess.run([SCRIPTS / "slurm_up.sh"], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 5
    assert done.stdout == f"export SLURM_CONF={os.environ['SLURM_CONF']}\n"
    assert "already running" in done.stderr
