"""The GPU check, run on the CPU: real ranks, a real out-of-memory error, an interruption; and its arithmetic."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support.programs import ROOT, Program
from support.waiting import PATIENCE, wait_until

from scripts.gpu_check import rank
from scripts.gpu_check.cases import Case, cases, flops_per_token, peak, settle
from scripts.gpu_check.machine import Inventory, visible_use
from scripts.gpu_check.rows import Row, remarks, table
from wellread.errors import UserError
from wellread.planning.machine import Machine
from wellread.units import GIB

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
LARGE = Machine(ranks_per_node=1, gpu_mem=139.8, host_mem=125.0, nvme=60.0)


def ranks_of(check: int) -> list[psutil.Process]:
    """Processes of the ranks of a check."""
    matches = []
    for process in psutil.Process(check).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "scripts.gpu_check.rank" in process.cmdline() and "probe" not in process.cmdline():
                matches.append(process)
    return matches


def rows(file: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return content


# --- the script


def test_without_a_gpu_it_says_so(program: Program) -> None:
    result = program("scripts.gpu_check", check=True)
    assert result.stdout.count("\n") == 1
    assert "no GPU" in result.stdout


@pytest.mark.long
@pytest.mark.slow
def test_it_trains_and_runs_the_story_on_a_cpu(program: Program, tmp_path: Path) -> None:
    report, text = tmp_path / "found.json", tmp_path / "table.md"
    flags = ["--device", "cpu", "--only", "tiny zero2", "--only", "story", "--json", report, "--markdown", text]
    result = program("scripts.gpu_check", *flags, env={**ONE_THREAD, "TMPDIR": str(tmp_path)}, check=True)
    zero2, naive, planned = rows(report)
    for row in (zero2, planned):
        assert row["trained"], row["outcome"]
        assert row["parameters"] == 2_566_272
        assert len(row["losses"]) == len(row["seconds"]) == 4
        assert row["losses"][-1] < row["losses"][0] - 0.05  # the same batch at each step
        assert 0.5 < row["predicted"]["host"] / row["host"]["pss"] < 2
        assert row["idle"]["host"] < row["host"]["pss"]
        assert row["gpu"] is None
        assert row["mfu"] is None
    assert (zero2["strategy"], planned["strategy"]) == ("zero2", "ddp")
    assert naive["short"] == "host"
    assert not naive["fits"]
    assert "out of host memory in batch: RuntimeError" in naive["outcome"]
    assert "can't allocate memory" in naive["outcome"]
    for row in (zero2, naive, planned):
        assert row["name"] in ("tiny zero2", "story tiny ddp", "story tiny auto")
        assert row["gib_measured"] is None
        assert (row["why"] is None) == row["trained"]
    last = result.stdout.rstrip().splitlines()[-5:]
    assert all(line.startswith("|") for line in last)  # the table comes last: header, rule, three rows
    assert text.read_text().rstrip().splitlines()[-5:] == last
    assert not list(tmp_path.glob("wellread-gpu-check-*"))


@pytest.mark.long
@pytest.mark.slow
def test_an_interruption_ends_the_ranks_and_prints_the_results_so_far(tmp_path: Path) -> None:
    report = tmp_path / "found.json"
    command = [sys.executable, "-m", "scripts.gpu_check", "--device", "cpu", "--only", "tiny", "--json", str(report)]
    variables = os.environ | ONE_THREAD | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as check:
        try:
            wait_until(lambda: report.exists() and len(rows(report)) == 1, "the first case ends", check)
            ranks = wait_until(lambda: ranks_of(check.pid), "the second case begins", check)
            check.send_signal(signal.SIGINT)
            printed, _ = check.communicate(timeout=PATIENCE)
        finally:
            check.kill()
    assert check.returncode == 130
    assert not [one for one in ranks if one.is_running()]
    assert [row["strategy"] for row in rows(report)] == ["ddp"]
    *_, heads, rule, row = printed.rstrip().splitlines()
    assert heads.startswith("| model")
    assert set(rule) <= set("|-: ")
    assert re.match(r"\| tiny +\| ddp .*\| trained, loss", row)
    assert not list(tmp_path.glob("wellread-gpu-check-*"))


@pytest.mark.slow
def test_without_deepspeed_it_says_how_to_bring_it(program: Program, tmp_path: Path) -> None:
    (tmp_path / "deepspeed.py").write_text("raise ImportError('not on this machine')\n")
    report = tmp_path / "found.json"
    flags = ["--device", "cpu", "--only", "tiny zero2", "--json", report]
    result = program("scripts.gpu_check", *flags, env={"PYTHONPATH": str(tmp_path)}, check=True)
    assert "DeepSpeed is missing (ImportError: not on this machine)" in result.stdout
    assert "docs/gpu.md" in result.stdout
    assert rows(report) == []


# --- the cases


def test_the_cases_are_all_sizes_and_strategies_and_the_story_at_the_end() -> None:
    every = cases("cuda")
    plain = {(case.model, case.strategy) for case in every if not case.story}
    assert len(plain) == 8 * 8
    assert len(every) == len(set(every)) == 8 * 8 + 8 * 2 + 2
    assert [case.name for case in every[-2:]] == ["story pythia-12b ddp", "story pythia-12b auto"]


def test_only_what_is_predicted_to_fit_is_measured(tmp_path: Path) -> None:
    settled = [settle(case, LARGE, tmp_path) for case in cases("cuda") if not case.story]
    fitting = [case for case in settled if case]
    assert 40 < len(fitting) < len(settled)
    for case in fitting:
        assert case.predicted.fits
        assert case.plan.strategy == case.predicted.strategy == case.case.strategy
        assert case.plan.accumulation == 1
        assert case.plan.activation_checkpointing == case.predicted.checkpointing
        assert case.plan.offload_ratio == case.predicted.ratio
    assert not [case for case in fitting if case.plan.model == "pythia-12b" and case.plan.strategy == "ddp"]


def test_the_naive_12b_is_started_though_it_does_not_fit(tmp_path: Path) -> None:
    naive = next(case for case in cases("cuda") if case.story)
    settled = settle(naive, LARGE, tmp_path)
    assert settled
    assert not settled.predicted.fits
    assert settled.predicted.gpu_bytes > 16 * 11_846_072_320
    assert (settled.plan.engine, settled.plan.micro_batch_size, settled.plan.seq_len) == ("torch", 1, 2048)


def test_the_plan_of_the_12b_fits_or_says_what_is_missing(tmp_path: Path) -> None:
    planned = next(case for case in reversed(cases("cuda")) if case.story)
    roomy = settle(planned, Machine(ranks_per_node=1, gpu_mem=139.8, host_mem=1000.0), tmp_path)
    assert roomy
    assert roomy.predicted.fits
    assert roomy.plan.engine == "deepspeed"
    assert roomy.plan.activation_checkpointing == roomy.predicted.checkpointing
    with pytest.raises(UserError, match=r"no strategy fits; the nearest, .* is short of \d+\.\d GiB"):
        settle(planned, Machine(ranks_per_node=1, gpu_mem=16.0, host_mem=32.0), tmp_path)


def test_several_gpus_share_a_batch(tmp_path: Path) -> None:
    four = Machine(ranks_per_node=4, gpu_mem=80.0, host_mem=500.0)
    settled = settle(Case(model="pythia-1.4b", strategy="zero2"), four, tmp_path)
    assert settled
    assert (settled.plan.ranks, settled.plan.batch_size) == (4, 4 * settled.plan.micro_batch_size)


# --- memory of a GPU


def test_memory_of_other_programs_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = {"memory_reserved": 6 * GIB, "max_memory_reserved": 9 * GIB, "max_memory_allocated": 8 * GIB}
    for name, size in readings.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "host_memory_stats", lambda: {"allocated_bytes.peak": 2 * GIB})
    monkeypatch.setenv("LOCAL_RANK", "1")
    # 10 GiB are in use: 6 by torch, 3 by another program, so the context takes 1.
    measured = rank.gpu_memory([0, 3 * GIB])
    sizes = {"allocated": 8, "held": 9, "outside": 1, "process": 10, "pinned": 2}
    assert measured == {name: size * GIB for name, size in sizes.items()}
    unknown = rank.gpu_memory([])
    assert unknown
    assert unknown["outside"] == 4 * GIB


@pytest.mark.parametrize(
    ("visible", "used"),
    [(None, [3, 70_000, 4]), ("2,1", [4, 70_000]), ("GPU-bb", [70_000]), ("", [0]), ("7", [0])],
)
def test_used_memory_of_the_visible_gpus(visible: str | None, used: list[int]) -> None:
    table = "0, GPU-aa11-22, 3\n1, GPU-bb11-22, 70000\n2, GPU-cc11-22, 4\n"
    assert visible_use(table, visible) == [size * 2**20 for size in used]
    assert visible_use("NVIDIA-SMI has failed because it could not communicate with the driver.", None) == []


@pytest.mark.parametrize("flags", [["--only", "pythia-13b"], ["--minutes", "0"], ["--host_mem", "-1"]])
def test_bad_input_is_one_line(flags: list[str], program: Program) -> None:
    result = program("scripts.gpu_check", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {' '.join(flags)}: ")
    assert result.stderr.count("\n") == 1


# --- speed


def test_operations_per_token_by_hand() -> None:
    layer = 512 * 3 * 512 + 512 * 512 + 2 * 512 * 2048  # attention: qkv and output; MLP: two matrices
    by_hand = 6 * (6 * layer + 50304 * 512) + 12 * 6 * 512 * 2048
    assert flops_per_token("pythia-70m", 2048) == by_hand


@pytest.mark.parametrize(
    ("gpu", "rate"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla V100-SXM2-32GB", 125e12),
    ],
)
def test_the_peak_rate_needs_the_full_name_of_a_gpu(gpu: str, rate: float | None) -> None:
    assert peak(gpu) == rate


# --- the table


def test_errors_of_the_prediction() -> None:
    row = Row("pythia-1b", "zero2", "trained", trained=True, predicted={"gpu": 11 * GIB, "host": 6 * GIB})
    row.peaks = {"gpu": "forward", "host": "saving"}
    row.gpu = {"allocated": 8 * GIB, "held": 9 * GIB, "outside": GIB, "process": 10 * GIB}
    row.host = {"pss": 3 * GIB, "taken": 4 * GIB}
    assert row.error("gpu") == pytest.approx(0.1)
    assert row.error("host") is None  # not measured during a save
    row.peaks["host"] = "step"
    assert row.error("host") == pytest.approx(0.5)  # the process's own count excludes page-locked memory
    row.trained = False
    assert row.error("gpu") is None


def test_a_bar_in_an_error_does_not_break_the_table() -> None:
    lines = table([Row("tiny", "ddp", "failed in load: a | b")]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1


def test_the_remarks_compare_assumptions_with_measurements() -> None:
    gpu = {"allocated": 8 * GIB, "held": 9 * GIB, "outside": GIB, "process": 10 * GIB}
    idle = {"host": 2 * GIB, "gpu": gpu | {"outside": GIB // 2}}
    row = Row(
        "pythia-12b", "zero3-partial", "trained", trained=True, story=True, fits=True, ratio=0.5, gpu=gpu, idle=idle
    )
    row.predicted = {"gpu": 11 * GIB, "host": 6 * GIB}
    lines = remarks([row], Inventory(LARGE, ["NVIDIA RTX A4000"], "2.13.0", "0.19.8", None), ["pythia-12b zero1"], [])
    assert "Host memory of a rank without a model: 2.00 GiB (predicted with 2.50)." in lines
    assert any("0.50 GiB before the model, 1.00 after training (predicted with 0.75)" in line for line in lines)
    assert any(line.endswith("has no peak rate for NVIDIA RTX A4000.") for line in lines)
    assert "The story: pythia-12b, zero3-partial 50%, predicted to fit (11.00 GiB per GPU): trained." in lines
    assert lines[-1] == "Skipped, because they are predicted not to fit: pythia-12b zero1."
