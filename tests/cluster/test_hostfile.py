"""`--cluster hostfile`: two nodes with a real sshd, on loopback addresses of this machine."""

import getpass
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from support.programs import Program, missing
from support.waiting import PATIENCE, wait_until

from launch.backends.elastic import ASKED
from launch.backends.ssh import connections as hostfile
from launch.backends.ssh.hosts import hosts
from launch.backends.ssh.node import Request
from launch.cluster import ClusterFile, load
from wellread.checkpoint import list_checkpoints
from wellread.errors import UserError
from wellread.record.reader import Record
from wellread.record.writer import COLUMNS
from wellread.run import RunDirectory

NODES = ("127.0.0.2", "127.0.0.3")
ODD = 'it\'s $(touch broken) "here" `touch broken`; touch broken & \\ * é'


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ssh command that reaches both nodes. The sshd runs until the tests of this file have ended."""
    daemon = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if daemon is None:
        missing("sshd is missing; Debian: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    with socket.socket() as probe:
        probe.bind((NODES[0], 0))
        port = probe.getsockname()[1]
    settings = {
        "Port": port,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "PermitRootLogin": "yes",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "Banner": folder / "banner",
    }
    (folder / "banner").write_text("Welcome to the cluster.\n")
    listen = "".join(f"ListenAddress {address}\n" for address in NODES)
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()) + listen)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its chroot directory before a login
    process = subprocess.Popen([daemon, "-D", "-f", folder / "config", "-E", folder / "log"])
    options = f"-o UserKnownHostsFile={folder / 'known'} -o StrictHostKeyChecking=no"
    command = f"ssh -F none -p {port} -i {folder / 'user'} {options}"
    try:
        for address in NODES:
            login = [*command.split(), address, "true"]
            wait_until(lambda login=login: not subprocess.run(login, capture_output=True).returncode, "login", process)  # type: ignore[misc]
        yield command
    finally:
        process.terminate()
        process.wait()


def described(folder: Path, command: str, **values: object) -> Path:
    """A cluster file and its hostfile."""
    (folder / "hosts").write_text(f"{NODES[0]} slots=1\n{getpass.getuser()}@{NODES[1]} slots=1   # the second\n")
    about = {"kind": "hostfile", "device": "cpu", "hostfile": str(folder / "hosts"), "ssh": command}
    common = {
        "environment": {"OMP_NUM_THREADS": "1"},
        "forward": ["CUDA_VISIBLE_DEVICES"],
    }  # both nodes are this machine
    (folder / "two.yaml").write_text(yaml.safe_dump(about | common | values))
    return folder / "two.yaml"


@pytest.fixture
def cluster(ssh: str, tmp_path: Path) -> ClusterFile:
    return load(str(described(tmp_path, ssh)))


# Programs to start: a training, or a few lines of Python as each rank


def flags(corpora: Path, steps: int, save_every: int) -> list[object]:
    """The tiny model on the shipped sample, as in the fixture `tiny_run`."""
    return ["--steps", steps, "--save_every", save_every, "--keep_states", 4, "--corpora", corpora, "--generations", 0]


def training(root: Path, file: Path, run: Path, corpora: Path) -> "subprocess.Popen[str]":
    """Start a long training on both nodes and return after its first step."""
    command = ["-m", "launch", "run", "finetune", "--cluster", file, "--nodes", 2, "--out", run]
    command += [*flags(corpora, 100_000, 100_000), "--batch_size", 4]
    launcher = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = run / "log" / "attempt-001-rank-0.log"
    wait_until(lambda: log.is_file() and re.search(r"step +\d+/", log.read_text()), "the first step", launcher)
    return launcher


def processes(run: Path) -> dict[str, psutil.Process]:
    """Ranks and agents of a training, by name."""
    matches = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if str(run) in words and "train" in words:
                matches[f"rank {process.environ()['RANK']}"] = process
            elif words[1:] == ["-m", "launch", "node"] and process.cwd() == str(run / "code"):
                matches[f"agent {process.pid}"] = process
        except psutil.Error:
            continue
    return matches


RANKS = """
import json, os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
def ready(text=""):
    (folder / f".{rank}").write_text(text)
    os.rename(folder / f".{rank}", folder / rank)
"""
STARTED = """
import sys
from pathlib import Path
from launch import cluster
from launch.backends.ssh import connections as hostfile
from launch.backends.ssh.hosts import hosts
file, folder, text, code = sys.argv[1:]
where = cluster.load(file)
names = [host.name for host in hosts(where)]
given = {"GIVEN": "given", "WELLREAD_ATTEMPT": "1"}
sys.exit(hostfile.start(where, names, Path(folder), ["-c", text, folder], 1, given, Path(code)))
"""


def started(file: Path, text: str, code: Path, **variables: str) -> "subprocess.Popen[str]":
    """Start two ranks, one per node, that run this Python text in folder `code`."""
    command = [sys.executable, "-c", STARTED, str(file), str(file.parent), RANKS + text, str(code)]
    environment = os.environ | variables
    return subprocess.Popen(
        command, env=environment, cwd=code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(launcher: "subprocess.Popen[str]") -> tuple[int, str, str]:
    printed, errors = launcher.communicate(timeout=PATIENCE)
    return launcher.returncode, printed, errors


# Trainings


@pytest.mark.slow
def test_two_nodes_read_what_two_local_ranks_read(
    ssh: str, program: Program, tiny_run: RunDirectory, corpora: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    where = ["--cluster", described(tmp_path, ssh), "--nodes", 2, "--out", run.path]
    result = program("launch", "run", "finetune", *flags(corpora, 12, 4), *where, check=True)
    assert "finished at step 12" in result.stdout
    assert "Welcome" not in result.stdout + result.stderr
    local, two = (Record.open(directory.record).table(list(COLUMNS)).to_pylist() for directory in (tiny_run, run))
    losses = [[row.pop("loss") for row in rows] for rows in (local, two)]
    assert len(two) == 12 * 16
    assert two == local
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)  # equal if the number of threads is equal
    assert [c.step for c in list_checkpoints(run.checkpoints)] == [0, 4, 8, 12]
    (attempt,) = run.manifest()["attempts"]
    assert attempt["hosts"] == [NODES[0], f"{getpass.getuser()}@{NODES[1]}"]
    assert (attempt["nodes"], attempt["ranks"], attempt["exit_code"]) == (2, 2, 0)


@pytest.mark.long
@pytest.mark.slow
def test_sigterm_saves_on_all_nodes(ssh: str, root: Path, corpora: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    launcher = training(root, described(tmp_path, ssh), run.path, corpora)
    before = processes(run.path)
    launcher.send_signal(signal.SIGTERM)
    code, printed, errors = ended(launcher)
    assert (code, errors) == (143, ASKED)
    stopped = re.search(r"stopped by SIGTERM at step (\d+), saved", printed)
    assert stopped, printed
    newest = list_checkpoints(run.checkpoints)[-1]
    assert newest.step == int(stopped.group(1))
    assert newest.damage() is None
    assert run.manifest()["attempts"][-1]["exit_code"] == 143
    assert len(before) == 4
    assert not any(process.is_running() for process in before.values())


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "rank 1"])
def test_killing_one_process_ends_all_others(victim: str, ssh: str, root: Path, corpora: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    launcher = training(root, described(tmp_path, ssh), run.path, corpora)
    before = processes(run.path)
    assert sorted(re.sub(r"agent \d+", "agent", name) for name in before) == ["agent", "agent", "rank 0", "rank 1"]
    psutil.Process(launcher.pid if victim == "launcher" else before[victim].pid).kill()
    code, _, errors = ended(launcher)
    _, alive = psutil.wait_procs(before.values(), timeout=PATIENCE)
    assert not alive
    if victim == "rank 1":
        assert code == 137
        assert "error: rank 1 was ended by signal 9 (SIGKILL)" in errors
        assert run.manifest()["attempts"][-1]["exit_code"] == 137
        assert "rank 0 failed first" not in errors  # it failed because the other rank had ended


# Ranks of a few lines


@pytest.mark.slow
def test_only_allowed_variables_reach_a_node_and_no_command_line_shows_them(
    ssh: str, root: Path, tmp_path: Path
) -> None:
    file = described(tmp_path, ssh, forward=["TOLD", "NOT_SET"], environment={"SET": "for all"})
    text = """
seen = {}
for process in Path("/proc").glob("[0-9]*"):
    try:
        seen[process.name] = (process / "cmdline").read_text()
    except OSError:
        pass
agent = Path(f"/proc/{os.getppid()}/environ").read_text()
ready(json.dumps([dict(os.environ), agent, "\\n".join(seen.values()), sys.stdin.read()]))
if rank == "0":
    print("a line\\nand a half", end="")
"""
    secrets = {"TOLD": "told-9f3a", "HF_TOKEN": "hidden-77c1", "AWS_SECRET_ACCESS_KEY": "hidden-77c1"}
    launcher = started(file, text, root, **secrets)
    code, printed, errors = ended(launcher)
    assert (code, printed, errors) == (0, "a line\nand a half", "")
    for rank in ("0", "1"):
        environment, agent, commands, stdin = json.loads((tmp_path / rank).read_text())
        assert environment["TOLD"] == "told-9f3a"
        assert environment["GIVEN"] == "given"
        assert environment["WORLD_SIZE"] == "2"
        assert environment["MASTER_ADDR"] == NODES[0]
        assert environment["GLOO_SOCKET_IFNAME"] == "lo"
        assert "NOT_SET" not in environment
        assert "hidden-77c1" not in str(environment) + agent
        assert "launch\0node" in commands
        assert "told-9f3a" not in commands
        assert "hidden-77c1" not in commands
        assert stdin == ""


@pytest.mark.slow
def test_one_failing_node_ends_the_other(ssh: str, root: Path, tmp_path: Path) -> None:
    text = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready(str(os.getpid()))
while rank == "0" or not (folder / "0").exists():
    time.sleep(0.1)
sys.exit(3)
"""
    launcher = started(described(tmp_path, ssh), text, root)
    code, _, errors = ended(launcher)
    assert (code, errors) == (3, "")
    assert not psutil.pid_exists(int((tmp_path / "0").read_text()))


@pytest.mark.slow
def test_a_second_signal_ends_ranks_that_ignore_signals(ssh: str, root: Path, tmp_path: Path) -> None:
    text = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # else it cannot save, and the first signal ends it
signal.signal(signal.SIGINT, lambda number, frame: (folder / f"asked-{rank}").touch())
ready(str(os.getpid()))
while True:
    time.sleep(1)
"""
    launcher = started(described(tmp_path, ssh), text, root)
    wait_until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), "both ranks start", launcher)
    launcher.send_signal(signal.SIGINT)
    signalled = [tmp_path / f"asked-{rank}" for rank in (0, 1)]
    wait_until(lambda: all(path.exists() for path in signalled), "both ranks get the signal", launcher)
    launcher.send_signal(signal.SIGINT)
    code, _, errors = ended(launcher)
    assert (code, errors) == (130, ASKED)
    assert not any(psutil.pid_exists(int((tmp_path / rank).read_text())) for rank in ("0", "1"))


@pytest.mark.slow
def test_a_folder_with_an_odd_name(ssh: str, root: Path, tmp_path: Path) -> None:
    code = tmp_path / ODD
    code.mkdir()
    for package in ("launch", "wellread"):
        (code / package).symlink_to(root / package)
    launcher = started(described(tmp_path, ssh), "ready(os.getcwd())", code)
    assert ended(launcher) == (0, "", "")
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == [str(code)] * 2
    assert not list(tmp_path.rglob("broken"))


@pytest.mark.slow
def test_an_agent_without_a_sign_of_life_ends_its_ranks(root: Path, tmp_path: Path) -> None:
    request = Request(
        host=NODES[0],
        run=str(tmp_path),
        arguments=["-c", RANKS + "ready(str(os.getpid()))\ntime.sleep(600)", str(tmp_path)],
        ranks=1,
        variables={"WELLREAD_ATTEMPT": "1"},
        nodes=1,
        number=0,
        address=NODES[0],
        port=0,
        peer="",
    )
    command = [sys.executable, "-c", "from launch.backends.ssh import node; node.SILENCE = 2; node.main()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as agent:
        assert agent.stdin
        agent.stdin.write(json.dumps(asdict(request)) + "\n")
        # Each look prints a line, which the agent takes as a sign of life.
        wait_until(lambda: print(file=agent.stdin, flush=True) or (tmp_path / "0").exists(), "the rank starts", agent)
        assert agent.wait(PATIENCE) == 1
    assert not psutil.pid_exists(int((tmp_path / "0").read_text()))


# Runs that do not start


def refused(cluster: ClusterFile, code: Path, names: tuple[str, ...] = NODES) -> int:
    return hostfile.start(cluster, list(names), code, ["-c", "pass"], 1, {"WELLREAD_ATTEMPT": "1"}, code)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"python": "/none/python"}, "/none/python: No such file"),
        ({"python": "/bin/false"}, "ssh ended with code 1"),
        ({"python": "/bin/echo"}, "-m launch node"),  # prints its reason on stdout, as the shell nologin does
        ({"ssh": "no-such-ssh"}, "no-such-ssh: not found"),
    ],
    ids=lambda value: next(iter(value.values())).rpartition("/")[2] if isinstance(value, dict) else "",
)
def test_a_node_that_cannot_start_is_one_line(
    changed: dict[str, str], words: str, ssh: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused(load(str(described(tmp_path, ssh, **changed))), root) == 2
    printed, errors = capfd.readouterr()
    assert printed == ""
    assert words in errors
    assert errors.count("\n") == 1
    assert NODES[0] in errors or "ssh" in changed


def test_a_missing_folder_is_one_line(cluster: ClusterFile, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(cluster, tmp_path / "none") == 2
    _, errors = capfd.readouterr()
    assert re.fullmatch(
        rf"error: {NODES[0]}: .*cd: .*none: No such file or directory; put .* on a filesystem .*\n", errors
    )


def test_a_host_that_refuses_is_one_line(ssh: str, program: Program, corpora: Path, tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind((NODES[0], 0))
        elsewhere = re.sub(r"-p \d+", f"-p {closed.getsockname()[1]}", ssh)
        where = ["--cluster", described(tmp_path, elsewhere), "--nodes", 2, "--out", tmp_path / "run"]
        result = program("launch", "run", "finetune", *flags(corpora, 12, 4), *where)
    assert result.returncode == 2
    assert re.fullmatch(rf"error: {NODES[0]}: ssh: connect to host .* Connection refused; .*\n", result.stderr)
    assert RunDirectory(tmp_path / "run").manifest()["attempts"][-1]["exit_code"] == 2


def test_a_second_host_that_refuses_ends_the_first(
    cluster: ClusterFile, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused(cluster, root, (NODES[0], "nobody@" + NODES[1])) == 2
    _, errors = capfd.readouterr()
    assert errors.startswith(f"error: nobody@{NODES[1]}: ")
    assert "Permission denied" in errors
    assert errors.count("\n") == 1


def test_localhost_cannot_be_the_name_of_a_node(
    cluster: ClusterFile, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused(cluster, root, ("localhost", NODES[1])) == 2
    assert "localhost is a different machine on each node" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one slots=2\ntwo slots=many\n", "line 2: 'two slots=many' is not a host"),
        ("one slots=2\n\none slots=4\n", "line 3: one appears twice"),
        ("# nothing\n", "contains no hosts"),
        ("one slots=2\n-oProxyCommand=touch\\ /x\n", "line 2: '-oProxyCommand=touch"),
    ],
    ids=["slots", "twice", "empty", "option"],
)
def test_a_hostfile_with_a_mistake_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        hosts(ClusterFile(kind="hostfile", hostfile=str(tmp_path / "hosts")))


@pytest.mark.parametrize("python", ["python3", "/opt/a b/python", ODD])
def test_a_shell_runs_the_command_with_odd_names(python: str, tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    line = hostfile.agent_command(folder, python)
    echo = line.replace("&& exec", "&& pwd && printf '%s\\n'")  # prints the command instead of starting it
    result = subprocess.run(["sh", "-c", echo], capture_output=True, text=True, check=True)
    assert result.stdout == f"{folder}\n{python}\n-m\nlaunch\nnode\n"
    assert os.listdir(folder) == []


def test_ssh_never_prompts_and_options_of_the_user_come_first() -> None:
    cluster = ClusterFile(kind="hostfile", ssh="ssh -p 2222 -i '~/my keys/id' -o ConnectTimeout=3")
    line = hostfile.agent_command(Path("/shared/run/code"), sys.executable)
    command = hostfile.ssh_command(cluster, "me@gpu1", line, ConnectTimeout=9)
    assert command[:7] == ["ssh", "-p", "2222", "-i", f"{Path.home()}/my keys/id", "-o", "ConnectTimeout=3"]
    assert {"BatchMode=yes", "ConnectTimeout=9"} <= {*command}
    assert command[-2:] == ["me@gpu1", f"cd /shared/run/code && exec {shlex.quote(sys.executable)} -m launch node"]
