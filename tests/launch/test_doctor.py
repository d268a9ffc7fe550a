"""`wellread doctor` on really broken machines, on hosts behind a real sshd, and on the development cluster."""

import contextlib
import getpass
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.programs import Program, missing
from support.waiting import wait_until

from launch import doctor
from launch.backends.slurm import checks as slurm_checks
from launch.backends.slurm import scheduler as doctor_scheduler
from launch.backends.ssh import checks as ssh_checks
from launch.checks import host as doctor_host
from launch.checks import node as doctor_node
from launch.checks import several as doctor_several
from launch.checks import software as doctor_software
from launch.checks.check import Check
from launch.cluster import ClusterFile
from wellread.errors import UserError

LOCAL = [
    "git",
    "python",
    "packages",
    "disk: runs",
    "disk: corpora",
    "torch",
    "device",
    "compiler",
    "ninja",
    "build lock",
    "op: deepspeed_shm_comm",
    "op: cpu_adam",
    "op: async_io",
    "libaio",
    "port",
    "host name",
    "ulimit: open files",
    "ulimit: locked memory",
    "ulimit: core",
    "memory",
    "/dev/shm",
    "disk: torch_extensions",
]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a filesystem of 4 MiB."""
    folder = tmp_path / "runs"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        missing("mounting a small filesystem needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def by_name(text: str) -> dict[str, dict[str, str]]:
    return {check["check"]: check for check in json.loads(text)}


def request(**values: Any) -> doctor_node.Request:
    return doctor_node.Request(**{"runs": "runs", "corpora": "corpora", "extensions": "ops"} | values)


def test_a_machine_is_shown_as_aligned_text(program: Program) -> None:
    result = program("launch", "doctor")
    assert result.stderr == ""
    *lines, last = result.stdout.splitlines()
    rows = [line for line in lines if not line.startswith(" ")]
    assert [row[9:].partition("  ")[0] for row in rows] == LOCAL
    states = Counter(row.split()[0] for row in rows)
    assert last == f"22 checks: {states['ok']} ok, {states['warning']} warning, {states['failed']} failed"
    assert result.returncode == (1 if states["failed"] else 0)
    assert "\x1b" not in result.stdout
    arrows = [line.index("->") for line in lines if line.startswith(" ")]
    assert len(arrows) == states["warning"] + states["failed"]
    assert set(arrows) <= {rows[0].index("commit")}
    import torch

    assert f"{torch.__version__}, CPU build, imported in" in result.stdout


def test_a_broken_machine_gets_remedies(root: Path, tmp_path: Path, full_disk: Path) -> None:
    """No compiler and no ninja, a full disk, a lock left by a killed build, few open files: all at the same time."""
    lock = tmp_path / "ops" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (tmp_path / "bin").mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "launch", "doctor", "--json", "--runs", full_disk, "--corpora", tmp_path],
        cwd=root,
        env=os.environ | {"PATH": str(tmp_path / "bin"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "ops")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 2048)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    checks = by_name(result.stdout)
    assert set(checks["git"]) == {"check", "where", "state", "found", "remedy"}
    bad = {name: (check["state"], check["remedy"]) for name, check in checks.items() if check["state"] != "ok"}
    assert bad["git"] == ("failed", "Debian: apt-get install git")
    assert bad["compiler"] == ("failed", "Debian: apt-get install g++; cluster: a module load line in setup:")
    assert bad["ninja"][0] == "failed"
    assert bad["disk: runs"] == ("failed", "free some space, or choose another folder: --out…")
    assert "0.0 GiB free" in checks["disk: runs"]["found"]
    assert "(tmpfs)" in checks["disk: runs"]["found"]
    assert bad["build lock"][0] == "warning"
    assert checks["build lock"]["found"] == f"stale, removed: {lock}"
    assert not lock.exists()
    assert bad["op: cpu_adam"] == ("warning", "wellread doctor --build, with the same --cluster")
    assert bad["libaio"] == ("warning", "apt-get install libaio-dev, or yum install libaio-devel")
    assert checks["ulimit: open files"]["found"] == "1024 (at most 2048)"
    assert bad["ulimit: open files"][0] == "warning"
    assert checks["torch"]["state"] == "ok"


def test_a_torch_that_hangs_or_breaks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("import time; time.sleep(3600)")
    check = doctor_software.torch(doctor_software.import_torch(seconds=1))
    assert (check.state, check.found) == ("failed", "the import hangs: not finished after 1 s")
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    check = doctor_software.torch(doctor_software.import_torch())
    assert check.found == "ImportError: libcudart.so.12: cannot open shared object file"
    assert check.remedy == "make setup installs the versions of constraints.txt"


@pytest.mark.parametrize(
    ("built", "usable", "gpus", "has_driver", "requested", "state", "text"),
    [
        ("CPU", [], 0, False, "auto", "ok", "CPU, "),
        ("CPU", [], 0, False, "cuda", "failed", "no GPU ("),
        ("CPU", [], 2, True, "auto", "failed", "2 GPUs, but torch is the CPU build"),
        ("CPU", [], 2, True, "cpu", "ok", "CPU, "),
        ("CUDA 13.0", [], 0, False, "auto", "warning", "there is no NVIDIA driver"),
        ("CUDA 13.0", [], 0, True, "auto", "warning", "CUDA_VISIBLE_DEVICES hides the GPUs"),
        ("CUDA 13.0", [], 1, True, "auto", "failed", "torch for CUDA 13.0 cannot use them"),
        ("CUDA 13.0", ["H200, 139 GiB"] * 2, 2, True, "auto", "ok", "2 x H200, 139 GiB, torch for CUDA 13.0"),
    ],
)
def test_torchs_build_is_compared_with_the_devices(
    built: str, usable: list[str], gpus: int, has_driver: bool, requested: str, state: str, text: str
) -> None:
    importing = {"built": built, "gpus": usable, "version": "2.13.0"}
    check = doctor_software.device(importing, requested, gpus, has_driver)
    assert check.state == state
    assert text in check.found
    assert bool(check.remedy) == (state != "ok")


def test_packages_are_compared_with_the_constraints() -> None:
    installed = doctor_software.versions()
    pins = doctor_software.pinned()
    assert doctor_software.packages(installed, pins).state == "ok"
    check = doctor_software.packages(installed | {"deepspeed": "0.15.0"}, pins)
    assert (check.state, check.found) == ("warning", f"deepspeed 0.15.0 (pinned {pins['deepspeed']})")
    without = {name: version for name, version in installed.items() if name != "torch"}
    check = doctor_software.packages(without, pins)
    assert (check.state, check.found) == ("failed", "missing: torch")
    assert doctor_software.python((3, 10, 1)).state == "failed"


def test_more_memory_than_a_node_has_is_refused() -> None:
    check = doctor_host.memory(required=1e6, in_job=True)
    assert (check.state, check.remedy) == ("failed", "lower memory: 1e+06 in the cluster file")


@pytest.mark.parametrize(
    ("seconds", "state", "text"),
    [
        (0.1, "ok", "within 2 s of this machine's"),
        (-1.9, "ok", "within 2 s of this machine's"),
        (12, "warning", "12 s behind this machine's"),
        (-31, "failed", "31 s ahead of this machine's"),
    ],
)
def test_clocks_may_differ_slightly(seconds: float, state: str, text: str) -> None:
    check = doctor_several.clock("n1", seconds)
    assert (check.state, check.found) == (state, text)


def test_mixed_pieces_of_reports_are_sorted(tmp_path: Path) -> None:
    """As on the development cluster: long lines of two tasks arrive in pieces, in any order."""
    reports = [
        doctor_node.Report(
            host=host,
            checks=[doctor_host.ok("memory", host * 3000)],
            gpus=1,
            versions={},
            root="/",
            code="",
            token=None,
        )
        for host in ("n1", "n2")
    ]
    texts = [json.dumps(asdict(report)) for report in reports[::-1]]
    pieces = [[text[i : i + 700] for i in range(0, len(text), 700)] for text in texts]
    lines = [
        f"{doctor_node.MARK}n{2 - k}-7 {piece}" for pair in zip(*pieces, strict=True) for k, piece in enumerate(pair)
    ]
    output = tmp_path / "output"
    output.write_text("\n".join(["a greeting of the login shell", *lines, doctor_node.MARK + 'n3-1 {"host": ', ""]))
    answer = doctor_several.ask(["cat", str(output)], 20)
    assert [report for report, _ in answer.reports] == reports


def test_a_hanging_command_is_ended_with_its_children() -> None:
    answer = doctor_several.ask(["bash", "-c", "echo oops >&2; sleep 3600; true"], 3)
    assert not answer.in_time
    assert answer.stderr == ["oops"]


def test_a_node_without_the_shared_folder_fails(tmp_path: Path) -> None:
    with doctor_several.shared_file(tmp_path / "runs") as token:
        node_request = request(runs=str(tmp_path / "runs"), token=str(token))
        report = doctor_node.Report(
            host="n1",
            checks=[],
            gpus=4,
            versions=doctor_software.versions() | {"torch": "2.9.0"},
            root="/old",
            code=doctor_node.code_hash(),
            token=token.read_text(),
        )
        by_check = {c.check: c for c in doctor_several.of_node(report, report.time, node_request, 8)}
        assert [by_check[name].state for name in ("shared folder", "clock")] == ["ok", "ok"]
        version = doctor_software.versions()["torch"]
        assert (by_check["versions"].state, by_check["versions"].found) == ("failed", f"torch 2.9.0 (here {version})")
        assert (by_check["gpus"].state, by_check["gpus"].remedy[:13]) == ("failed", "correct gres:")
        other = replace(report, token=None, code="0")
        by_check = {c.check: c for c in doctor_several.of_node(other, report.time, node_request, 0)}
        assert by_check["shared folder"].state == "failed"
        assert "the code in /old differs" in by_check["shared folder"].found
        assert "gpus" not in by_check
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_small_job_has_the_options_of_the_cluster_file() -> None:
    cluster = ClusterFile(
        kind="slurm", partition="gpu", gres="gpu:a100:8", setup=("module load cuda",), srun=("--container-image=a b",)
    )
    node_request = request(runs="/it's")
    command = slurm_checks.srun_command(cluster, 3, node_request, "x")
    assert command[0] == "srun"
    assert {"--nodes=3", "--ntasks-per-node=1", "--partition=gpu", "--gres=gpu:a100:8", "--time=3"} <= set(command)
    assert "--container-image=a b" in command
    assert not any(word.startswith(("--account", "--qos", "--mail")) for word in command)
    *_, bash, minus_c, script = command
    assert (bash, minus_c) == ("bash", "-c")
    probe = script.replace(f"exec {sys.executable} -m launch.checks.node", "printf %s")
    module = "module() { printf '%s;' \"$*\"; }\n"
    output = subprocess.run(["bash", "-c", module + probe], capture_output=True, text=True, check=True).stdout
    assert output.startswith("load cuda;")
    assert json.loads(output.partition(";")[2])["runs"] == "/it's"


def test_bad_flags_are_refused_in_one_line(in_process: Program) -> None:
    with pytest.raises(UserError, match=r"--nodes 2: the local cluster is one machine"):
        doctor.main(["--nodes", "2"])
    with pytest.raises(UserError, match=r"--nodes 0: must be at least 1"):
        doctor.main(["--cluster", "slurm", "--nodes", "0"])
    result = in_process("launch", "doctor", "--cluster", "nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --cluster nowhere: unknown; choose")


def test_help_imports_nothing_heavy(root: Path) -> None:
    script = (
        "import sys; from launch import doctor\n"
        "try: doctor.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'deepspeed', 'transformers', 'submitit', 'rich'} & set(sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("set()\n")
    assert "wellread doctor --cluster slurm --nodes 2" in result.stdout


def test_equal_results_of_several_machines_are_one_line() -> None:
    checks = [
        Check(check="python", where="vm", state="ok", found="3.11"),
        Check(check="clock", where="n1", state="failed", found="40 s behind", remedy="synchronize"),
        Check(check="python", where="n1", state="ok", found="3.11"),
        Check(check="python", where="n2", state="ok", found="3.12"),
    ]
    assert doctor.as_text(doctor._merged(checks)).splitlines() == [
        "ok       python  vm n1  3.11",
        "ok       python  n2     3.12",
        "failed   clock   n1     40 s behind",
        "                        -> synchronize",
    ]


def test_a_terminal_gets_colors(root: Path, tmp_path: Path) -> None:
    """A machine without SLURM, which is reported in a second."""
    reader, terminal = os.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"PATH": str(tmp_path), "TERM": "xterm"}
    command = [sys.executable, "-m", "launch", "doctor", "--cluster", "slurm"]
    result = subprocess.run(command, cwd=root, env=environment, stdout=terminal, stderr=subprocess.PIPE, check=False)
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # the end of a terminal's output
        while data := os.read(reader, 4096):
            output += data
    os.close(reader)
    assert (result.returncode, result.stderr) == (1, b"")
    assert b"\x1b[32mok" in output
    assert b"\x1b[1;31mfailed" in output
    assert "→ log in to a node of the cluster, or use --cluster local".encode() in output


# Hosts


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[str]:
    """A command that reaches 127.0.0.1 through a real sshd."""
    daemon = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if daemon is None:
        missing("sshd is missing; Debian: apt-get install openssh-server")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        "PidFile none\nStrictModes no\nPermitRootLogin yes\nUsePAM no\nPasswordAuthentication no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd changes to this folder before a login
    process = subprocess.Popen([daemon, "-D", "-f", tmp_path / "config", "-E", tmp_path / "log"])
    try:
        wait_until(lambda: listens(port), "sshd listens", process)
        options = f"-o UserKnownHostsFile={tmp_path}/known -o StrictHostKeyChecking=no"
        yield f"ssh -F none -p {port} -i {tmp_path}/user {options}"
    finally:
        process.terminate()
        process.wait()


def test_hosts_send_reports_through_ssh(program: Program, ssh: str, tmp_path: Path) -> None:
    host = f"{getpass.getuser()}@127.0.0.1"
    (tmp_path / "hosts").write_text(f"{host} slots=2\n127.0.0.9 slots=2\n")
    about = {"kind": "hostfile", "device": "cpu", "hostfile": str(tmp_path / "hosts"), "ssh": ssh}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(about))
    result = program("launch", "doctor", "--cluster", tmp_path / "two.yaml", "--json", "--runs", tmp_path)
    assert result.returncode == 1, result.stderr
    checks = json.loads(result.stdout)
    away = [check for check in checks if check["where"] == "127.0.0.9"]
    assert [(check["check"], check["state"]) for check in away] == [("ssh", "failed")]
    assert "Connection refused" in away[0]["found"]
    assert away[0]["remedy"].startswith("make `ssh 127.0.0.9 true` work without a prompt")
    states = {check["check"]: check["state"] for check in checks if check["where"] == host}
    assert [states[name] for name in ("python", "torch", "shared folder", "clock", "versions")] == ["ok"] * 5
    assert not list(tmp_path.glob(".doctor-*"))


def test_a_missing_interpreter_on_a_host_has_a_remedy(ssh: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1\n")
    cluster = ClusterFile(kind="hostfile", hostfile=str(tmp_path / "hosts"), ssh=ssh, python="/no/python")
    from launch.backends.ssh.hosts import hosts

    [check] = ssh_checks.ask_hosts(cluster, hosts(cluster), request())
    assert (check.check, check.state) == ("ssh", "failed")
    assert check.remedy == "set python: in the cluster file to the interpreter of the nodes"


# SLURM


def slurm() -> None:
    """Skip unless the development cluster is in use."""
    if not os.environ.get("SLURM_CONF"):
        missing("SLURM_CONF is not set; make slurm-up starts a cluster")


def test_a_dead_controller_is_reported_soon(program: Program, tmp_path: Path) -> None:
    if shutil.which("scontrol") is None:
        missing("scontrol is missing; Debian: apt-get install slurm-client")
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=dead\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\nAuthType=auth/none\n"
        "NodeName=n1\nPartitionName=dev Nodes=ALL Default=YES\n"
    )
    env = {"SLURM_CONF": str(tmp_path / "slurm.conf")}
    result = program("launch", "doctor", "--cluster", "slurm", "--json", env=env)
    assert result.returncode == 1
    check = json.loads(result.stdout)[-1]
    assert (check["check"], check["state"]) == ("scheduler", "failed")
    assert check["found"].endswith("is DOWN")
    assert "SLURM_CONF" in check["remedy"]


def test_a_machine_without_slurm_has_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor_scheduler.scheduler("slurm")
    assert (check.state, check.found) == ("failed", "scontrol is not installed here")


@pytest.mark.parametrize(
    ("states", "count", "state", "text"),
    [
        (["idle", "mixed"], 2, "ok", "2: 1 idle, 1 mixed"),
        (["idle", "allocated"], 2, "warning", "2: 1 idle, 1 allocated"),
        (["idle", "idle", "down"], 2, "warning", "3: 2 idle, 1 down; n2 down (disk)"),
        (["idle", "not responding"], 2, "failed", "2: 1 idle, 1 not responding; n1 not responding (disk)"),
    ],
)
def test_unusable_nodes_are_listed(states: list[str], count: int, state: str, text: str) -> None:
    usable = doctor_scheduler.USABLE
    listed = [doctor_scheduler.Node(f"n{i}", s, "" if s in usable else "disk") for i, s in enumerate(states)]
    check = doctor_scheduler.nodes(ClusterFile(kind="slurm"), listed, count)
    assert (check.state, check.found) == (state, text)


@pytest.mark.slurm
def test_both_nodes_of_the_development_cluster_pass(program: Program, root: Path, tmp_path: Path) -> None:
    slurm()
    result = program("launch", "doctor", "--cluster", "slurm", "--nodes", 2, "--json", "--corpora", tmp_path)
    checks = json.loads(result.stdout)
    on = {node: {c["check"]: c for c in checks if c["where"] == node} for node in ("n1", "n2")}
    for node, states in on.items():
        assert "torch" in states, [c for c in checks if c["state"] != "ok"]
        assert [states[name]["state"] for name in ("torch", "shared folder", "clock", "versions")] == ["ok"] * 4
        assert states["host name"]["found"].startswith(f"{node} is 10.77.0.")
        assert states["clock"]["found"] == "within 2 s of this machine's"
        assert states["device"]["found"].startswith("CPU")
    by_check = {check["check"]: check for check in checks if check["where"] == "slurm"}
    assert list(by_check) == ["scheduler", "partition", "nodes", "submission"]
    assert {check["state"] for name, check in by_check.items() if name != "nodes"} == {"ok"}
    assert by_check["nodes"]["state"] != "failed"  # a warning where other jobs run
    assert "would accept 2 x 1 ranks; it would start at" in by_check["submission"]["found"]
    assert not list((root / "runs").glob(".doctor-*"))


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("values", "name", "text"),
    [
        ({"partition": "gpu"}, "partition", "gpu does not exist"),
        ({"account": "nobodys"}, "account", "nobodys does not exist; accounts of"),
        ({"qos": "fastest"}, "qos", "fastest does not exist; known:"),
        ({"gres": "gpu:8"}, "submission", "SLURM would reject 1 nodes x 8 ranks: "),
        ({"memory": 5000}, "submission", "SLURM would reject 1 nodes x 1 ranks: "),
    ],
)
def test_a_job_that_slurm_would_reject_fails_the_check(
    values: dict[str, Any], name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"kind": "slurm"} | values))
    flags = ["--json", "--nodes", "1", "--runs", str(tmp_path), "--corpora", str(tmp_path)]
    assert doctor.main(["--cluster", str(tmp_path / "mine.yaml"), *flags]) == 1
    check = by_name(capsys.readouterr().out)[name]
    assert check["state"] == "failed"
    assert check["found"].startswith(text)
    assert check["remedy"]


@pytest.mark.slurm
def test_no_job_starts_for_more_nodes_than_exist(capsys: pytest.CaptureFixture[str]) -> None:
    slurm()
    assert doctor.main(["--cluster", "slurm", "--nodes", "3", "--json"]) == 1
    checks = by_name(capsys.readouterr().out)
    assert checks["nodes"]["state"] == "failed"
    assert checks["nodes"]["remedy"].startswith("--nodes 3 needs more usable nodes")
    assert "torch" not in checks
