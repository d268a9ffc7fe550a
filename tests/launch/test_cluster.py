"""Cluster files: all keys, all mistakes; and the machine of a plan."""

from __future__ import annotations

import os
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import devices
from launch.backends.base import of
from launch.backends.ssh import connections
from launch.cluster import ClusterFile, load, minutes
from launch.options import LaunchOptions, cluster_of
from wellread.config import RunConfig
from wellread.errors import UserError
from wellread.planning.machine import Machine

EVERYTHING = """
kind: slurm
device: cuda
ranks_per_node: 4
python: /opt/venv/bin/python
environment:
  NCCL_DEBUG: INFO
  LEVEL: 3
interface: ib0
hostfile: ~/hosts
ssh: ssh -p 2222
forward: [LANG, NCCL_IB_HCA]
partition: gpu
account: project-7
qos: high
constraint: a100&nvlink
gres: gpu:a100:8
time: 2-12:30:00
memory: 0.5
cpus_per_rank: 16
gpu_mem: 80
nvme: 1900.5
exclusive: yes
setup:
  - module load cuda
  - "ulimit -l unlimited"
srun: --mpi=none
sbatch:
  comment: a comment
  nice: 100
signal_delay: 300
requeues: 0
"""


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return str(file)


def refused(tmp_path: Path, text: str) -> str:
    """Return the error about the text of a cluster file, without the part that names the file."""
    file = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        load(file)
    label, message = str(error.value)[: len(f"--cluster {file}: ")], str(error.value)[len(f"--cluster {file}: ") :]
    assert label == f"--cluster {file}: "
    assert "\n" not in message
    return message


# --- cluster files


def test_every_key(tmp_path: Path) -> None:
    cluster = load(written(tmp_path, EVERYTHING))
    assert cluster == ClusterFile(
        kind="slurm",
        name="mine",
        device="cuda",
        ranks_per_node=4,
        python="/opt/venv/bin/python",
        environment={"NCCL_DEBUG": "INFO", "LEVEL": "3"},
        interface="ib0",
        hostfile=os.path.expanduser("~/hosts"),
        ssh="ssh -p 2222",
        forward=("LANG", "NCCL_IB_HCA"),
        partition="gpu",
        account="project-7",
        qos="high",
        constraint="a100&nvlink",
        gres="gpu:a100:8",
        time="2-12:30:00",
        memory=0.5,
        cpus_per_rank=16,
        gpu_mem=80.0,
        nvme=1900.5,
        exclusive=True,
        setup=("module load cuda", "ulimit -l unlimited"),
        srun=("--mpi=none",),
        sbatch={"comment": "a comment", "nice": "100"},
        signal_delay=300,
        requeues=0,
    )
    usual = ClusterFile(kind="local")
    same = [f.name for f in fields(usual) if getattr(cluster, f.name) == getattr(usual, f.name)]
    assert same == ["whole_job"]  # no key is forgotten


def test_defaults(tmp_path: Path) -> None:
    cluster = load(written(tmp_path, "kind: local\n"))
    assert cluster == ClusterFile(kind="local", name="mine")
    assert (cluster.time, cluster.signal_delay, cluster.requeues, cluster.device) == ("24:00:00", 90, 20, "auto")
    assert (cluster.environment, cluster.forward, cluster.setup, cluster.srun, cluster.sbatch) == ({}, (), (), (), {})


def test_an_empty_value_is_none(tmp_path: Path) -> None:
    empty = "partition:\nmemory: null\ncpus_per_rank: ~\nenvironment:\nsbatch:\n  # comment: x\nsrun:\nsetup: []\n"
    assert load(written(tmp_path, f"kind: slurm\n{empty}")) == ClusterFile(kind="slurm", name="mine")


@pytest.mark.parametrize("name", ["local", "hostfile", "slurm"])
def test_the_cluster_files_of_the_repository(name: str) -> None:
    cluster = load(name)
    assert (cluster.kind, cluster.name) == (name, name)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load("nope")
    assert str(error.value) == ("--cluster nope: unknown; choose hostfile, local, slurm or the path of a YAML file")
    with pytest.raises(UserError, match=r"absent\.yaml: unknown; choose hostfile, local, slurm"):
        load(str(tmp_path / "absent.yaml"))


def test_a_name_cannot_contain_a_path() -> None:
    with pytest.raises(UserError, match="unknown"):
        load("../models/../clusters/local/../nope")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: slurm\npartion: gpu\n", "unknown key 'partion'; use one of account, "),
        ("kind: slurm\nname: x\n", "unknown key 'name'; use one of account, "),
        ("kind: kubernetes\n", "kind: 'kubernetes' is not one of local, hostfile, slurm"),
        ("partition: gpu\n", "has no kind; write kind: local, hostfile or slurm"),
        ("", "has no kind; write kind: local, hostfile or slurm"),
        ("- kind: slurm\n", "has no kind; write kind: local, hostfile or slurm"),
        ("kind: [slurm\n", "not YAML (while parsing"),
        ("kind: slurm\ndevice: tpu\n", "device: 'tpu' is not one of auto, cpu, cuda"),
        ("kind: slurm\nranks_per_node: many\n", "ranks_per_node: 'many' is not a whole number"),
        ("kind: slurm\nranks_per_node: 1.5\n", "ranks_per_node: '1.5' is not a whole number"),
        ("kind: slurm\nsignal_delay: 90s\n", "signal_delay: '90s' is not a whole number"),
        ("kind: slurm\nsignal_delay:\n", "signal_delay: '' is not a whole number"),
        ("kind: slurm\nmemory: 64G\n", "memory: '64G' is not a number"),
        ("kind: slurm\nexclusive: maybe\n", "exclusive: 'maybe' is neither true nor false"),
        ("kind: slurm\npartition: [a, b]\n", "partition: ['a', 'b']: expected a single value"),
        ("kind: slurm\nenvironment: A=1\n", "environment: 'A=1' is not a mapping; write NAME: value, one per line"),
        ("kind: slurm\nenvironment: {A: [1, 2]}\n", "environment: ['1', '2']: expected a single value"),
        ("kind: slurm\nsetup:\n- echo a: b\n", "setup: {'echo a': 'b'}: expected a single value; put it in quotes"),
        ("kind: slurm\nsetup: {a: b}\n", "setup: {'a': 'b'} is not a list; write - value, one per line"),
        ("kind: slurm\nrequeues: -1\n", "requeues: -1 must be at least 0"),
        ("kind: slurm\nsignal_delay: -1\n", "signal_delay: -1 must be at least 0"),
        ("kind: slurm\nranks_per_node: 0\n", "ranks_per_node: 0 must be above 0"),
        ("kind: slurm\ncpus_per_rank: -2\n", "cpus_per_rank: -2 must be above 0"),
        ("kind: slurm\nnvme: 0\n", "nvme: 0.0 must be above 0"),
        ("kind: slurm\nmemory: -0.5\n", "memory: -0.5 must be above 0"),
        ("kind: slurm\nmemory: nan\n", "memory: 'nan' is not a number"),
        ("kind: slurm\nmemory: inf\n", "memory: 'inf' is not a number"),
        ("kind: slurm\ntime: soon\n", "time 'soon': not a valid time; use minutes, HH:MM:SS or D-HH:MM:SS"),
        ("kind: slurm\nsbatch: {--comment: x}\n", "sbatch: '--comment' is not an option; write its long name without"),
        ("kind: slurm\nsbatch: {'comment x': y}\n", "sbatch: 'comment x' is not an option; write its long name with"),
    ],
)
def test_mistakes_name_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text).startswith(message)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "kind: slurm\n", "not YAML (describes more than 10,000,000 values)"),
        ("kind: slurm\npartition: " + "[" * 5000 + "]" * 5000, "not YAML (is nested too deeply)"),
        ("kind: slurm\nsetup: &s [*s]\n", "not YAML ("),
        (f"kind: slurm\npartition: [{'x' * 10**6}]\n", "partition: ['xxx"),
        (f"kind: {'x' * 10**6}\n", "kind: 'xxx"),
        ("kind: slurm\nranks_per_node: " + "9" * 5000, "ranks_per_node: '999"),
    ],
)
def test_a_bomb_ends_with_a_short_line(text: str, message: str, tmp_path: Path) -> None:
    began = time.monotonic()
    line = refused(tmp_path, text)
    assert line.startswith(message)
    assert len(line) < 600
    assert time.monotonic() < began + 60


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"kind: \xff\n")
    with pytest.raises(UserError, match=r"mine\.yaml: not UTF-8 at byte 6 of the file; save it"):
        load(str(file))


def test_yaml_tags_are_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    refused(tmp_path, f"kind: !!python/object/apply:os.mkdir ['{trace}']\n")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((name, "{}") for name in ("partition", "account", "qos", "constraint", "gres", "python", "interface", "ssh")),
        *((name, "[ok, {}]") for name in ("srun", "forward")),
        *((name, "{{A: {}}}") for name in ("environment", "sbatch")),
    ],
)
@pytest.mark.parametrize("character", ["\\n", "\\r", "\\t", "\\0", "\\e", "\\x7f"])
def test_control_characters_are_refused(key: str, value: str, character: str, tmp_path: Path) -> None:
    text = value.format(f'"a{character}#SBATCH --uid=0"')
    assert f"{key}: " in (message := refused(tmp_path, f"kind: slurm\n{key}: {text}\n"))
    assert "contains a control character" in message


def test_setup_lines_may_contain_control_characters(tmp_path: Path) -> None:
    cluster = load(written(tmp_path, 'kind: slurm\nsetup: ["if true; then\\n\\techo yes\\nfi"]\n'))
    assert cluster.setup == ("if true; then\n\techo yes\nfi",)


# --- time limits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("1", 1), ("90:00", 90), ("90:01", 91), ("1:30", 2), ("2:00:00", 120), ("24:00:00", 1440),
        ("0:01:30", 2), ("0:01:00", 1), ("1-0", 1440), ("1-12", 2160), ("1-12:30", 2190), ("2-00:00:01", 2881),
        ("7-23:59:59", 11_520), (" 10 ", 10),
    ],
)  # fmt: skip
def test_minutes_of_each_format(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-5", "1h", "1:2:3:4", "1-", "-", "1.5", ":30", "1-2-3", "1:-30", "∞"])
def test_invalid_times_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a valid time; use minutes, HH:MM:SS or D-HH:MM:SS"):
        minutes(text)


@pytest.mark.parametrize("text", ["0", "0:59", "0:00:59", "0-0", "0-00:00:00"])
def test_less_than_a_minute_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="shorter than one minute"):
        minutes(text)


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_minutes_agree_with_timedelta(days: int, hours: int, mins: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + mins) * 60 + seconds
    if total >= 60:
        assert minutes(f"{days}-{hours:02d}:{mins:02d}:{seconds:02d}") == -(-total // 60)
        assert minutes(f"{days * 24 + hours}:{mins:02d}:{seconds:02d}") == -(-total // 60)
        assert minutes(f"{total // 60}:{seconds:02d}") == -(-total // 60)


def test_a_time_without_quotes_is_read_as_text(tmp_path: Path) -> None:
    assert load(written(tmp_path, "kind: slurm\ntime: 24:00:00\n")).time == "24:00:00"
    assert minutes(load(written(tmp_path, "kind: slurm\ntime: 1:30\n")).time) == 2
    assert minutes(load(written(tmp_path, "kind: slurm\ntime: 0090\n")).time) == 90


# --- GPUs


@pytest.mark.parametrize(
    ("gres", "expected"),
    [
        (None, 0), ("", 0), ("shard:2", 0), ("gpu", 1), ("gpu:8", 8), ("gpu:0", 0), ("gpu:a100", 1), ("gpu:a100:4", 4),
        ("shard:2,gpu:h100:8", 8), ("gpu:2,shard:4", 2), ("gpu:2080ti:4", 4), ("gpu:4090:8", 8), ("gpu:1g.10gb:7", 7),
        ("gpu:tesla:2(S:0-1)", 2), ("gpumem:80", 0), ("nogpu:3", 0), ("gpu_mem:80,gpu:2", 2),
    ],
)  # fmt: skip
def test_gpus_of_a_node(gres: str | None, expected: int) -> None:
    assert ClusterFile(kind="slurm", gres=gres).gpus == expected


@pytest.mark.parametrize(
    ("text", "gres", "per_node"),
    [
        ("sbatch: {gpus-per-node: 4}", "gpu:4", 4),
        ("sbatch: {gpus_per_node: 'a100:4', comment: x}", "gpu:a100:4", 4),
        ("sbatch: {gpus-per-task: 1}\nranks_per_node: 4", "gpu:4", 4),
        ("sbatch: {gpus-per-task: 2}", "gpu:2", 2),
        ("sbatch: {gpus: 8}", "gpu:8", 4),
        ("sbatch: {gpus: 'h100:8'}\ngres: shard:2", "shard:2,gpu:h100:8", 4),
    ],
)
def test_gpus_among_options_of_sbatch(text: str, gres: str, per_node: int, tmp_path: Path) -> None:
    cluster = load(written(tmp_path, f"kind: slurm\n{text}\n"))
    assert (cluster.gres, cluster.gpus_of(2)) == (gres, per_node)
    assert not [key for key in cluster.sbatch if "gpu" in key]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sbatch: {gpus-per-node: 4}\ngres: gpu:4", "sbatch: 'gpus-per-node' requests GPUs a second time; keep only"),
        ("sbatch: {gpus-per-node: many}", "sbatch: gpus-per-node 'many' is not a number of GPUs; write 4 or a100:4"),
        ("sbatch: {gpus: 0}", "sbatch: gpus '0' is not a number of GPUs"),
        ("sbatch: {gres: 'gpu:4'}", "sbatch: 'gres' may request GPUs; write gres: with what a node has, as gpu:8"),
        ("sbatch: {tres_per_node: 'gres/gpu:4'}", "sbatch: 'tres_per_node' may request GPUs"),
    ],
)
def test_gpus_that_the_plan_cannot_read(text: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, f"kind: slurm\n{text}\n")


def test_gpus_of_a_job_are_shared_equally(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gpus: 8 cannot be divided by 3 nodes; write gres: gpu:N per node"):
        load(written(tmp_path, "kind: slurm\nsbatch: {gpus: 8}\n")).gpus_of(3)


@pytest.mark.parametrize(
    ("visible", "installed", "expected"),
    [(None, 4, 4), ("", 4, 0), ("0,2", 4, 2), ("0,1,2", 2, 2), ("-1", 4, 0), ("GPU-8f2a", 4, 1), ("0", 0, 0)],
)
def test_gpus_of_this_process(
    visible: str | None, installed: int, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(installed):
        (tmp_path / f"0000:{number:02d}:00.0").mkdir()
    monkeypatch.setattr(devices, "DRIVER", tmp_path)
    monkeypatch.setattr(devices, "_memories", list)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.count_gpus() == expected


def test_gpus_without_files_of_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "missing")
    monkeypatch.setattr(devices, "_memories", lambda: [24.0, 16.0])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (devices.gpus(), devices.gpu_mem()) == (["0", "1"], 16.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.gpus() == ["1"]


@pytest.mark.parametrize(
    ("text", "for_cpus"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", True),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", False),
        ("cuda = None\nhip = '6.4.1'\n", False),
        ("cuda: str | None = None\nrocm: str | None = '7.0'\n", True),
    ],
)
def test_builds_of_torch(text: str, for_cpus: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(text)
    spec = SimpleNamespace(origin=str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(devices, "find_spec", lambda name: spec)
    assert devices.torch_is_for_cpus() == for_cpus


# --- machines of plans


def probed(file: ClusterFile, **shape: int | str) -> tuple[int, int, str]:
    config = RunConfig.of(**shape)
    machine = of(file).probe(config.cluster.nodes, config.cluster.ranks_per_node)
    assert machine.cluster == file.kind
    return machine.nodes, machine.ranks_per_node, machine.device


def not_probed(file: ClusterFile, **shape: int | str) -> str:
    with pytest.raises(UserError) as error:
        probed(file, **shape)
    return str(error.value)


def test_a_slurm_machine_is_what_its_file_says() -> None:
    assert probed(ClusterFile(kind="slurm"), nodes=3) == (3, 1, "cpu")
    assert probed(ClusterFile(kind="slurm"), nodes=2, ranks_per_node=5) == (2, 5, "cpu")
    assert probed(ClusterFile(kind="slurm", ranks_per_node=4)) == (1, 4, "cpu")
    gpus = ClusterFile(kind="slurm", gres="gpu:a100:8")
    assert probed(gpus, nodes=16) == (16, 8, "cuda")
    assert probed(gpus, ranks_per_node=2) == (1, 2, "cuda")
    assert probed(replace(gpus, ranks_per_node=4)) == (1, 4, "cuda")
    assert probed(replace(gpus, device="cpu"), ranks_per_node=64) == (1, 64, "cpu")
    assert probed(ClusterFile(kind="slurm", device="cuda"), ranks_per_node=2) == (1, 2, "cuda")


def test_more_ranks_than_gpus_are_refused() -> None:
    assert not_probed(ClusterFile(kind="slurm", gres="gpu:4"), ranks_per_node=5) == (
        "--ranks_per_node 5: a node has 4 (gres: gpu:4); choose at most 4"
    )


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    local = ClusterFile(kind="local", name="local")
    monkeypatch.setattr(devices, "count_gpus", lambda: 0)
    assert probed(local) == (1, 1, "cpu")
    assert probed(local, ranks_per_node=7) == (1, 7, "cpu")
    assert probed(replace(local, ranks_per_node=3)) == (1, 3, "cpu")
    assert not_probed(local, nodes=2) == ("--nodes 2: the local cluster is one machine; choose 1, or --cluster slurm")
    assert not_probed(replace(local, device="cuda")) == ("--cluster local: device is cuda, but this machine has no GPU")
    monkeypatch.setattr(devices, "count_gpus", lambda: 4)
    monkeypatch.setattr(devices, "torch_is_for_cpus", lambda: True)
    assert probed(local) == (1, 1, "cpu")
    assert "device is cuda, but torch is built for CPUs" in not_probed(replace(local, device="cuda"))
    monkeypatch.setattr(devices, "torch_is_for_cpus", lambda: False)
    assert probed(local) == (1, 4, "cuda")
    assert probed(local, ranks_per_node=2) == (1, 2, "cuda")
    assert probed(replace(local, device="cpu")) == (1, 1, "cpu")
    assert not_probed(local, ranks_per_node=5) == (
        "--ranks_per_node 5: a node has 4 (this machine's GPUs); choose at most 4"
    )


def test_ranks_are_the_slots_of_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_gpus", lambda: 0)
    monkeypatch.setattr(connections, "count_gpus", lambda file, host: {"a": 0}[host])
    (tmp_path / "hosts").write_text("a slots=4\nb slots=2\nc slots=8\n")
    file = ClusterFile(kind="hostfile", hostfile=str(tmp_path / "hosts"))
    assert probed(file) == (1, 4, "cpu")
    assert probed(file, nodes=2) == (2, 2, "cpu")  # the smallest number of the hosts in use
    assert probed(replace(file, device="cuda"), nodes=3, ranks_per_node=1) == (3, 1, "cuda")
    assert probed(replace(file, ranks_per_node=2), nodes=3) == (3, 2, "cpu")
    assert not_probed(file, nodes=4) == f"--nodes 4: {tmp_path}/hosts has 3; choose at most 3"
    assert not_probed(file, nodes=3, ranks_per_node=3) == (
        f"--ranks_per_node 3: a node has 2 (slots in {tmp_path}/hosts); choose at most 2"
    )
    monkeypatch.setattr(connections, "count_gpus", lambda file, host: {"a": 8}[host])
    assert probed(file, nodes=2) == (2, 2, "cuda")  # launched from a machine without GPUs


# --- flags that override the file


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "kind: slurm\ntime: 10\npartition: long\n")
    cluster = cluster_of(file, None, None)
    assert (cluster.time, cluster.partition) == ("10", "long")
    cluster = cluster_of(file, "1-0", "short")
    assert (cluster.time, cluster.partition, cluster.name) == ("1-0", "short", "mine")
    with pytest.raises(UserError, match="--time x: not a valid time"):
        cluster_of(file, "x", None)
    with pytest.raises(UserError, match=r"partition: .* contains a control character"):
        cluster_of(file, None, "short\n#SBATCH --uid=0")


def test_launch_options_are_selected_from_all_flags() -> None:
    assert LaunchOptions.of({}) == LaunchOptions()
    options = LaunchOptions.of({"wait": True, "json": True, "time": "5", "config": None, "then": "eval"})
    assert options == LaunchOptions(wait=True, time="5", then="eval")


def test_a_probe_returns_the_machine_of_a_plan() -> None:
    assert of(ClusterFile(kind="slurm", gres="gpu:2")).probe(2, "auto") == Machine(
        cluster="slurm", nodes=2, ranks_per_node=2, device="cuda"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time": "1"}, "time '1': not longer than signal_delay (90 s); use a longer --time"),
        ({"time": "99:99"}, "time '99:99': more than 59 after a colon"),
        ({"sbatch": {"nodes": "2"}}, "sbatch: 'nodes' is set by launch"),
        ({"sbatch": {"job_name": "x"}}, "sbatch: 'job_name' is set by launch"),
        ({"sbatch": {"no-requeue": "true"}}, "sbatch: 'no-requeue' is set by launch"),
    ],
)
def test_settings_that_break_a_job_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        of(ClusterFile(kind="slurm", **values))
    assert str(error.value).startswith(message)


def test_a_short_time_limit_names_the_path_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "kind: slurm\ntime: 1\n")
    with pytest.raises(UserError) as error:
        of(load(file))
    assert str(error.value).startswith(f"--cluster {file}: time '1': not longer than signal_delay (90 s)")
