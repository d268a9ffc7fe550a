"""`python -m launch`: help and plan without heavy imports, and nothing written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.programs import missing

from launch import job
from launch.backends import base as backends
from launch.cluster import ClusterFile
from launch.options import LaunchOptions
from wellread.config import RunConfig
from wellread.files import write_json
from wellread.planning.plan import KEYS
from wellread.planning.strategies import LADDER
from wellread.run import RunDirectory

HEAVY = {
    "torch", "transformers", "deepspeed", "tokenizers", "datasets", "accelerate", "peft", "huggingface_hub",
    "tensorboard", "altair", "vl_convert", "pyarrow", "pandas", "scipy", "sentencepiece", "submitit",
}  # fmt: skip
FLAGS = """model data out steps epochs batch_size micro_batch_size seq_len seed dtype strategy holdout save_every
save_schedule resume cluster nodes ranks_per_node max_bad_rows config print_config optim.lr
wait then snapshot strict time partition"""
COMMANDS = [
    *("run finetune", "run pretrain", "run eval", "plan finetune", "plan pretrain"),
    *("status", "logs", "cancel", "doctor", "models"),
]
NO_SIZE = "must be a number of GiB above 0; leave it out if it is not known"
SETTINGS = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive", "TORCH_EXTENSIONS_DIR": "/var/cache/torch"}
PLAN = (
    "plan finetune --ranks_per_node 2 --batch_size 24 --save_schedule log --corpora tests/golden/none "
    "--out tests/golden/run --host_mem 16"
)


def imported(root: Path, *argv: str) -> tuple[set[str], str]:
    """Return the top-level packages that `python -m launch ARGV` imports, and its output."""
    command = [sys.executable, "-X", "importtime", "-m", "launch", *argv]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    names = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert result.returncode == 0, result.stderr[-2000:]
    assert "runpy" in names or "encodings" in names  # prints the list of imports
    return {name.partition(".")[0] for name in names}, result.stdout


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--help"],
        ["run", "finetune", "--help"],
        PLAN.split(),
        ["plan", "finetune", "--data", "dolly", "--model", "pythia-2.8b", "--host_mem", "500", "--json"],
        *([*command.split(), "--help"] for command in COMMANDS),
    ],
    ids=lambda argv: " ".join(argv[:3]),
)
def test_nothing_heavy_is_imported(argv: list[str], root: Path) -> None:
    packages, text = imported(root, *argv)
    assert not packages & HEAVY
    assert len(text) > 100


def test_a_plan_for_slurm_needs_submitit_and_nothing_heavier(root: Path) -> None:
    packages, _ = imported(root, *PLAN.split(), "--cluster", "slurm", "--nodes", "2")
    assert packages & HEAVY == {"submitit"}


def test_help_names_every_command_and_an_example(root: Path) -> None:
    _, text = imported(root, "--help")
    assert text.startswith("usage: wellread COMMAND")
    listed = text.partition("commands:\n")[2].partition("\n\n")[0]
    commands = re.findall(r"^  ([a-z]+(?: [a-z]+)?)(?: [A-Z\[].*?)?  +\S", listed, re.MULTILINE)
    assert sorted(commands) == sorted(COMMANDS)
    assert len(re.findall(r"^  wellread ", text, re.MULTILINE)) >= 3
    _, flags = imported(root, "run", "finetune", "--help")
    for flag in FLAGS.split():
        assert re.search(rf"--{re.escape(flag)}\b", flags), flag


def plan(in_process, *argv: object) -> dict[str, object]:  # type: ignore[no-untyped-def]
    flags = ("--json", "--corpora", "tests/golden/none", *argv)
    result = in_process("launch", "plan", "finetune", *flags, env=SETTINGS, check=True)
    assert result.stderr == ""
    values = json.loads(result.stdout)
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("name", ["finetune", "pretrain"])
def test_no_flag_is_needed(in_process, name: str) -> None:  # type: ignore[no-untyped-def]
    result = in_process("launch", "plan", name, check=True)
    assert result.stdout.startswith("run  ")


def test_json_keys_and_arithmetic(in_process, root: Path) -> None:  # type: ignore[no-untyped-def]
    values = plan(in_process, "--ranks_per_node", 2, "--batch_size", 24, "--out", "runs/x", "--host_mem", 16)
    strategies = values.pop("strategies")
    assert [strategy["strategy"] for strategy in strategies] == list(LADDER)
    for strategy in strategies:
        assert {"strategy", "fits", "gpu_bytes", "host_bytes", "disk_bytes", "nvme_bytes"} <= set(strategy)
    files, command, variables = (values.pop(name) for name in ("files", "command", "environment"))
    assert command == [sys.executable, "-u", "-m", "finetune", "train", str(root / "runs/x")]
    assert variables == {
        "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024",
        "PYTHONFAULTHANDLER": "1", "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": "/var/cache/torch", "WELLREAD_CODE": str(root / "runs/x/code"),
    }  # fmt: skip
    assert values == {
        "model": "tiny", "cluster": "local", "device": "cpu", "nodes": 1, "ranks_per_node": 2, "ranks": 2,
        "batch_size": 24, "micro_batch_size": 6, "accumulation": 2,
        "dtype": "bf16", "grad_accum_dtype": "fp32", "engine": "torch", "strategy": "ddp",
        "chosen": "ddp", "strategy_reason": "the fastest that fits (1.7 of 16 GiB of host memory per node)",
        "seq_len": 256, "samples": 664, "trainable": 498, "sealed": 166, "counts_exact": False,
        "order": "shuffle", "order_control": False, "pass_samples": 498,
        "steps": 166,  # 8 epochs of 498 samples, 24 per step
        "epochs": 8.0, "warmup_steps": 5,
        "save_steps": [0, 50, 100, 150, 166],
        "fast": [], "fast_reason": "", "gpu": None,
        "gpu_mem": None, "host_mem": 16.0, "nvme": None, "forced": False,
        "activation_checkpointing": False, "offload_ratio": None, "ds_config": None, "failures": [],
        "out": "runs/x",
    }  # fmt: skip
    assert files == [
        "config.yaml", "plan.json", "manifest.json", "corpus", "code/", "log/", "tb/", "record/",
        *(f"checkpoints/step-{step:08d}/" for step in (0, 50, 100, 150, 166)),
    ]  # fmt: skip


def test_a_published_data_set_is_planned_without_a_download(in_process) -> None:  # type: ignore[no-untyped-def]
    values = plan(in_process, "--model", "pythia-2.8b", "--holdout", 0.1, "--strategy", "zero3", "--epochs", 1)
    names = ("samples", "trainable", "sealed", "counts_exact", "batch_size", "steps", "engine", "out")
    assert [values[name] for name in names] == [
        15011, 13510, 1501, False, 32, 423, "deepspeed", "runs/pythia-2.8b-dolly",
    ]  # fmt: skip


def test_a_compiled_corpus_gives_exact_counts(in_process, corpus, corpora) -> None:  # type: ignore[no-untyped-def]
    values = plan(in_process, "--corpora", corpora)
    assert (values["counts_exact"], values["trainable"], values["sealed"]) == (True, 518, 146)
    assert values["steps"] == 259  # 8 * 518 / 16


def test_the_text_plan(in_process, root: Path, golden: Callable[[str, str], None]) -> None:  # type: ignore[no-untyped-def]
    result = in_process("launch", *PLAN.split(), env=SETTINGS, check=True)
    golden("plan.txt", result.stdout.replace(sys.executable, "PYTHON").replace(str(root), "ROOT"))


@pytest.mark.slow
def test_a_plan_shows_the_state_of_its_run(in_process, copied_run: RunDirectory, corpora: Path) -> None:  # type: ignore[no-untyped-def]
    def first_line() -> str:
        flags = ("--steps", 12, "--out", copied_run.path, "--corpora", corpora)
        return str(in_process("launch", "plan", "finetune", *flags, check=True).stdout.partition("\n")[0])

    assert first_line() == f"run            {copied_run.path} (finished)"
    shutil.rmtree(copied_run.checkpoints / "step-00000012")
    assert first_line() == f"run            {copied_run.path} (started; would resume from step 8)"
    shutil.rmtree(copied_run.checkpoints)
    assert first_line() == f"run            {copied_run.path}"


def test_planning_writes_nothing(in_process, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    in_process(
        "launch", "plan", "finetune", "--out", tmp_path / "run", "--corpora", tmp_path / "corpora", check=True
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_print_config_gives_yaml_that_gives_the_same_plan(in_process, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ["--batch_size", 8, "--optim.lr", "3e-4", "--holdout", 0.5]
    printed = in_process("launch", "plan", "finetune", *flags, "--print_config", check=True).stdout
    (tmp_path / "run.yaml").write_text(printed)
    assert "batch_size: 8\n" in printed
    assert plan(in_process, *flags) == plan(in_process, "--config", tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["fly"],
            "launch fly: unknown command; use run, plan, status, logs, cancel, doctor, models, see wellread --help",
        ),
        (["plan", "dance"], "wellread plan dance: unknown kind of training; use finetune or pretrain"),
        (["plan", "eval"], "wellread plan eval: unknown kind of training; use finetune or pretrain"),
        (["run", "dance"], "wellread run dance: unknown kind of training; use finetune, pretrain or eval"),
        (
            ["plan", "finetune", "--model", "tinny"],
            "--model tinny: not a directory or a known model; did you mean tiny? "
            "Other names that are near: stories-42m, stories-15m, stories-260k, stories-110m; see wellread models",
        ),
        (["plan", "finetune", "--data", "x.jsonl"], "--data x.jsonl: x.jsonl does not exist"),
        (["plan", "finetune", "--seq_len", "513"], "--seq_len 513: tiny has 512 positions; choose at most that"),
        (
            ["plan", "finetune", "--ranks_per_node", "3"],
            "--batch_size 16: not divisible by 3 ranks; choose 15 or 18",
        ),
        (
            ["plan", "finetune", "--nodes", "2"],
            "--nodes 2: the local cluster is one machine; choose 1, or --cluster slurm",
        ),
        (
            ["plan", "finetune", "--cluster", "moon"],
            "--cluster moon: unknown; choose hostfile, local, slurm or the path of a YAML file",
        ),
        (
            ["plan", "finetune", "--time", "soon"],
            "--time soon: not a valid time; use minutes, HH:MM:SS or D-HH:MM:SS",
        ),
        (["run", "eval", "membership"], "missing: RUN; see wellread run eval --help"),
        (
            ["run", "eval", "membership", "nowhere"],
            "nowhere: not a run directory (it has no config.yaml); see the folder runs/ for yours",
        ),
        (
            ["run", "eval", "membership", "nowhere", "--array_parallelism", "0"],
            "--array_parallelism 0: must be at least 1",
        ),
        (["run", "finetune", "--stpes", "3"], "unknown setting 'stpes': did you mean --steps?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv: list[str], message: str, in_process, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    new = ["--out", tmp_path / "run"] if argv[:2] == ["plan", "finetune"] else []  # runs/ may have the default run
    result = in_process("launch", *argv, *new)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


def test_strategies_for_gpus_of_other_machines(in_process) -> None:  # type: ignore[no-untyped-def]
    """Pythia-12b on GPUs of 80 GiB: one GPU offloads the optimizer to the host, eight partition it (docs/memory.md)."""
    shape = ["--model", "pythia-12b", "--seq_len", 2048, "--batch_size", 32, "--gpu_mem", 80]
    one = plan(in_process, *shape, "--host_mem", 500)
    eight = plan(in_process, *shape, "--host_mem", 1000, "--ranks_per_node", 8)
    assert (one["device"], one["chosen"], eight["chosen"]) == ("cuda", "zero2-offload", "zero2")
    too_small = in_process("launch", "plan", "finetune", *shape, "--host_mem", 128)
    assert too_small.returncode == 2
    assert "pythia-12b on 1 x 1 ranks: no strategy fits; the nearest, " in too_small.stderr
    assert "what would fit: LoRA: --lora.rank 16 --lora.targets all-linear, " in too_small.stderr
    assert ", or --nodes " in too_small.stderr
    assert too_small.stderr.count("\n") == 1
    refused = in_process("launch", "run", "finetune", *shape, "--host_mem", 500)
    assert refused.stderr.startswith("error: --gpu_mem: this machine has no GPU")


def test_the_memory_check_refuses_what_cannot_fit(in_process, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    flags = ["--model", "pythia-1.4b", "--strategy", "ddp", "--host_mem", 4, "--out", tmp_path / "run"]
    planned = in_process("launch", "plan", "finetune", *flags, check=True)
    assert re.search(r"ddp .* GiB|ddp  .*chosen, [\d.]+ GiB of host missing", planned.stdout)
    result = in_process("launch", "run", "finetune", *flags)
    assert (result.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "--strategy ddp: does not fit, " in result.stderr
    assert "--force" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu_mem", "0.5"], "--gpu_mem 0.5: CUDA itself needs 0.75 GiB; give the full size of a GPU"),
        (["--gpu_mem", "-1"], f"--gpu_mem -1: {NO_SIZE}"),
        (["--gpu_mem", "-1", "--cluster", "slurm"], f"--gpu_mem -1: {NO_SIZE}"),  # its ranks run on CPUs
        (["--gpu_mem", "nan"], "--gpu_mem nan: expected a number"),
        (["--host_mem", "inf"], "--host_mem inf: expected a number"),
        (["--host_mem", "1e400"], f"--host_mem inf: {NO_SIZE}"),
        (["--host_mem", "0"], f"--host_mem 0: {NO_SIZE}"),
        (["--nvme", "-5"], f"--nvme -5: {NO_SIZE}"),
        (["--nvme", "much"], "--nvme much: expected a number"),
        (
            ["--nvme_path", "/nowhere"],
            "--nvme_path /nowhere: no such directory; create it on the NVMe disk of every node",
        ),
        (["--ranks_per_node", "0", "--gpu_mem", "40"], "--ranks_per_node 0: must be at least 1, or auto"),
        (["--ranks_per_node", "-8"], "--ranks_per_node -8: must be at least 1, or auto"),
        (["--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--micro_batch_size", "-1"], "--micro_batch_size -1: must be at least 1"),
        (
            ["--strategy", "zero3-nvme"],
            "--strategy zero3-nvme: needs --nvme_path, a directory on each node's NVMe disk; to only plan, give --nvme",
        ),
    ],
)
def test_invalid_sizes_are_one_line(flags: list[str], message: str, in_process) -> None:  # type: ignore[no-untyped-def]
    result = in_process("launch", "plan", "finetune", *flags)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A read-only filesystem, on which also root cannot write."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(path)], check=False).returncode:
        missing("a tmpfs cannot be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


def test_an_unusable_nvme_path_is_refused(in_process, read_only: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    cases = {
        read_only: "not writable; choose a directory that you may write to",
        tmp_path / "file": "no such directory; create it on the NVMe disk of every node",
    }
    for path, message in cases.items():
        result = in_process("launch", "run", "finetune", "--nvme_path", path, "--out", tmp_path / "run")
        assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: --nvme_path {path}: {message}\n")
    assert not (tmp_path / "run").exists()


def test_sizes_are_shown_even_if_nothing_fits(in_process) -> None:  # type: ignore[no-untyped-def]
    """Exit code 2 and one line, and on stdout how much memory is missing."""
    command = ["launch", "plan", "finetune", "--model", "pythia-12b", "--gpu_mem", 24, "--host_mem", 64]
    text, values = in_process(*command), in_process(*command, "--json")
    assert (text.returncode, values.returncode) == (2, 2)
    assert text.stderr == values.stderr
    assert text.stderr.count("\n") == 1
    assert "what would fit: " in text.stderr
    plan = json.loads(values.stdout)
    assert plan["chosen"] is None
    assert [each["strategy"] for each in plan["strategies"]] == list(LADDER)
    assert not any(each["fits"] for each in plan["strategies"])
    assert text.stdout.splitlines()[1].endswith("of gpu missing")


def test_nvme_of_other_machines_is_planned_but_not_run(in_process, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Pythia-12b on a GPU of 24 GiB: 16 bytes of each of 11,846,072,320 weights go to NVMe, 176.5 GiB."""
    shape = ["--model", "pythia-12b", "--seq_len", 2048, "--batch_size", 32, "--gpu_mem", 24, "--host_mem", 200]
    values = plan(in_process, *shape, "--nvme", 2000)
    (strategy,) = (each for each in values["strategies"] if each["strategy"] == values["chosen"])  # type: ignore[attr-defined]
    assert (values["chosen"], strategy["fits"], strategy["nvme_bytes"]) == ("zero3-nvme", True, 18 * 11_846_072_320)
    assert "of 2,000 GiB of NVMe per node" in str(values["strategy_reason"])
    small = in_process("launch", "plan", "finetune", *shape, "--nvme", 190)
    assert small.returncode == 2
    assert "zero3-nvme, is short of 18.1 GiB of NVMe per node, as 5% of" in small.stderr  # 198.6 - 95% of 190
    flags = ("--host_mem", 64, "--nvme", 100, "--strategy", "zero3-nvme", "--out", tmp_path / "run")
    refused = in_process("launch", "run", "finetune", *flags)
    assert refused.returncode == 2
    assert refused.stderr == ("error: --strategy zero3-nvme: needs --nvme_path, a directory on each node's NVMe disk\n")
    assert not (tmp_path / "run").exists()


def test_without_libaio_no_run_starts(in_process, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A compiler without libaio simulates a machine without it."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nfor word; do [ "$word" = -laio ] && exit 1; done\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    flags = ("--strategy", "zero3-nvme", "--nvme_path", tmp_path, "--out", tmp_path / "run", "--host_mem", 64)
    for command in ("plan", "run"):
        result = in_process("launch", command, "finetune", *flags, env={"CXX": str(compiler)})
        assert (result.returncode, result.stdout, result.stderr) == (
            2,
            "",
            "error: --strategy zero3-nvme: needs libaio, but no program can be built with it; "
            "apt-get install libaio-dev, or yum install libaio-devel\n",
        )
    assert not (tmp_path / "run").exists()


SINFO = """#!/bin/sh
[ "$*" = "--noheader --Node --format %P %m" ] && printf 'cpu* 64000\ncpu* 48128+\ngpu 1031000\ndebug 8000\n'
[ "$*" = "--noheader --Node --partition gpu --format %P %m" ] && printf 'gpu 1031000\ngpu 515072\n'
true
"""


@pytest.mark.parametrize(
    ("file", "sizes", "expected"),
    [
        ({}, {}, (None, 47.0)),  # of the default partition's smallest node
        ({"partition": "gpu"}, {}, (None, 503.0)),
        ({"partition": "gpu", "gpu_mem": 80.0, "memory": 256.0}, {}, (80.0, 256.0)),
        ({"partition": "gpu", "gpu_mem": 80.0}, {"gpu_mem": 40.0, "host_mem": 100.0}, (40.0, 100.0)),
        ({"partition": "gone"}, {}, (None, None)),
    ],
)
def test_sizes_of_a_slurm_cluster(
    file: dict[str, Any], sizes: dict[str, float], expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sinfo").write_text(SINFO)
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    options = LaunchOptions(**sizes)  # type: ignore[arg-type]
    machine = job._sized(RunConfig().cluster, backends.of(ClusterFile(kind="slurm", **file)), options)
    assert (machine.gpu_mem, machine.host_mem) == expected


def test_the_schedule_in_words(in_process: Callable[..., Any], tmp_path: Path) -> None:
    flags = ["--epochs", 1, "--batch_size", 6, "--optim.min_lr", 0, "--corpora", tmp_path, "--out", tmp_path / "run"]
    lines = in_process("launch", "plan", "finetune", *flags, check=True).stdout.splitlines()
    assert any(line.startswith("steps") and " = 1 epoch, " in line for line in lines)
    assert any(line.startswith("learning rate") and line.endswith(", cosine to 0") for line in lines)


def test_a_run_that_has_begun_keeps_its_steps_of_warmup(in_process, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = RunDirectory(tmp_path / "run")
    flags = ["--steps", 100, "--optim.warmup", 0.07, "--corpora", tmp_path, "--out", run.path]
    planned = plan(in_process, *flags)
    assert planned["warmup_steps"] == 7
    (run.checkpoints / "step-00000000").mkdir(parents=True)
    write_json(run.plan_file, {key: planned[key] for key in KEYS} | {"warmup_steps": 8})
    identity = {"batch_size": planned["batch_size"], "order": {}}
    write_json(run.manifest_file, {"version": 1, "identity": identity, "attempts": []})
    assert plan(in_process, *flags)["warmup_steps"] == 8
    assert plan(in_process, *flags, "--steps", 200)["warmup_steps"] == 14


def test_a_slurm_job_requests_the_memory_that_its_plan_counts_on(
    in_process: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sinfo").write_text(SINFO)
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    flags = ["--json", "--cluster", "slurm", "--corpora", tmp_path, "--out", tmp_path / "run"]
    planned = json.loads(in_process("launch", "plan", "finetune", *flags, check=True).stdout)
    assert planned["host_mem"] == 47.0
    assert "#SBATCH --mem=0\n" in planned["sbatch"]
