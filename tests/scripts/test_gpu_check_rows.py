"""The rows of the GPU check: its real workers on a CPU, time limits, comparisons, files; the order of the checks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import ROOT, Program
from support.waiting import PATIENCE, wait_until

from scripts.gpu_check import profile, runner, waits, weights
from scripts.gpu_check.checks import AS_IS, CPU, GPU, VARIANTS, Check, checks
from scripts.gpu_check.machine import Inventory
from scripts.gpu_check.results import Result, table
from scripts.gpu_check.rows import Row
from scripts.gpu_check.runner import Runner, equal, relative
from scripts.gpu_check.synthetic import supported, unsupported
from scripts.gpu_check.workers import Worker, Workers
from wellread.planning.machine import Machine

KEYS = {"name", "trained", "why", "tokens_per_second", "mfu", "gib_predicted", "gib_measured"}
LARGE = Machine(ranks_per_node=1, gpu_mem=79.2, host_mem=125.0)


def rows(file: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return content


def a_runner(folder: Path, seconds: float = 1000, device: str = "cpu") -> Runner:
    inventory = Inventory(Machine(device=device, ranks_per_node=1, host_mem=20.0), [], "2.13.0", "0.19.8", None)  # type: ignore[arg-type]
    return Runner(inventory, folder, folder / "rows.json", folder / "rows.md", time.monotonic() + seconds)


# --- the whole check


@pytest.mark.slow
def test_the_rows_of_a_cpu(program: Program, tmp_path: Path) -> None:
    report, out = tmp_path / "rows.json", tmp_path / "out"
    out.mkdir()
    names = ["ceilings", AS_IS, "bf16 packed", "waits per step", "Trainer"]
    flags = [word for name in names for word in ("--only", name)]
    variables = {"OMP_NUM_THREADS": "1", "OUT": str(out)}
    result = program("scripts.gpu_check", "--device", "cpu", *flags, "--json", report, env=variables, check=True)
    measured = {row["name"]: row for row in rows(report)}
    assert all(row.keys() >= KEYS for row in measured.values())
    assert [row["name"] for row in rows(out / "gpu-check.json")] == list(measured)
    assert AS_IS in (out / "gpu-check.md").read_text()
    as_is, trainer = measured[AS_IS], measured["1.4B, Hugging Face's Trainer"]
    for row in (as_is, trainer):
        assert row["trained"]
        assert row["tokens_per_second"] > 0
        assert row["first_loss"] == pytest.approx(7.64, abs=0.03)  # the logarithm of 2,048
    assert trainer["losses_equal"]
    assert trainer["loss_difference"] < 1e-3
    assert "attention" in as_is["attention"].lower()
    packed = measured["losses equal to a CPU's, bf16 packed"]
    assert packed["trained"]
    assert packed["same_digests"]
    assert packed["loss_difference"] == 0  # both sides ran on the same CPU
    assert measured["host waits per step"]["waits"] == [0, 0, 0]
    assert result.stdout.count("**1.4B**") == 1


@pytest.mark.slow
def test_a_killed_check_leaves_its_rows(tmp_path: Path) -> None:
    report = tmp_path / "rows.json"
    command = [sys.executable, "-m", "scripts.gpu_check", "--device", "cpu", "--only", "1.4B", "--only", "ceilings"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen([*command, "--json", str(report)], cwd=ROOT, env=variables, stdout=subprocess.PIPE) as check:
        try:
            wait_until(lambda: report.exists() and len(rows(report)) >= 3, "the ceilings are measured", check)
        finally:
            check.send_signal(signal.SIGKILL)
    assert [row["name"].split(",")[0] for row in rows(report)][:2] == ["matrix product"] * 2


# --- workers


@pytest.mark.slow
def test_a_worker_is_reused_and_ends_at_its_time_limit(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    first = list(workers.run("cpu", {"job": "ceilings", "size": 8}, PATIENCE))
    assert [row["trained"] for row in first] == [True] * 3
    worker = workers._idle[0]
    failed = list(workers.run("cpu", {"job": "train", "settings": {"model": "unknown-1b"}, "machine": {}}, PATIENCE))
    assert [(row["trained"], "unknown-1b" in row["why"]) for row in failed] == [(False, True)]
    assert workers._idle == [worker]  # an error of a task does not end the process
    late = list(workers.run("cpu", {"job": "ceilings", "size": 2048}, 0.05))
    assert late[-1]["why"].startswith("timed out after")
    assert not worker.usable
    workers.retire("cpu", remaining=0)


@pytest.mark.slow
def test_a_worker_outlives_the_thread_that_needed_it(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    task = {"job": "ceilings", "size": 8}
    thread = threading.Thread(target=lambda: list(workers.run("cpu", task, PATIENCE)))
    thread.start()
    thread.join()
    [worker] = workers._idle
    assert len(list(workers.run("cpu", task, PATIENCE))) == 3
    assert workers._idle == [worker]
    workers.retire("cpu", remaining=0)


def test_a_worker_that_dies_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    worker = Worker("cpu", tmp_path)
    [row] = worker.run({"job": "ceilings", "size": 8}, PATIENCE)
    assert row["why"] == "the process ended with code 1 in start: no output"


# --- the order, and what is skipped


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_names_are_unique_and_the_most_informative_first(device: str) -> None:
    every = checks(device)
    names = [check.name for check in every]
    assert len(set(names)) == len(names)
    assert names[:2] == ["ceilings", AS_IS]
    assert not [check.name for check in every if check.same_losses_as and check.same_losses_as not in names]
    usual = [check for check in every if not check.full]
    memory = [check.case.strategy for check in usual if check.case]
    assert memory == (["ddp", "zero1", "zero2", "zero3"] if device == "cuda" else ["ddp", "zero2"])
    assert not [check for check in usual if check.case and check.case.story]


def test_a_missing_package_or_setting_is_the_reason(tmp_path: Path) -> None:
    check = a_runner(tmp_path)
    settings = {"model": "tiny", "warp": "on"}
    for row in (
        Check(name="a", section="s", job="train", needs=("a_package_that_nobody_has",)),
        Check(name="b", section="s", job="train", only_gpu=True),
        Check(name="c", section="s", job="train", task={"settings": settings}),
    ):
        check._start(row, Workers(tmp_path), 0.0)
    assert [(row["why"], row["trained"]) for row in rows(tmp_path / "rows.json")] == [
        ("a_package_that_nobody_has is not installed", None),
        ("there is no GPU", None),
        ("this version has no setting warp", None),
    ]
    assert not any(row.failed for row in check.rows)


def test_a_setting_that_is_off_needs_no_support() -> None:
    assert unsupported("finetune", {"model": "tiny", "warp": "off"}) == []
    assert unsupported("pretrain", {"vocab": "512"}) == []
    assert unsupported("finetune", {"vocab": "512"}) == ["vocab"]
    assert "warp" not in supported({"warp": "off"})
    assert all("model" in scale.large for scale in (GPU, CPU))
    assert all(variant["settings"].keys() <= {"fast", "compile", "float8"} for variant in VARIANTS.values())


def test_without_time_a_check_waits(tmp_path: Path) -> None:
    check = a_runner(tmp_path, seconds=1)
    check.run([Check(name="a", section="s", job="train"), Check(name="b", section="s", job="train")], Workers(tmp_path))
    assert check.waiting == ["a", "b"]
    assert check.text().rstrip().endswith("the time ran out (--minutes): a, b.")


def test_a_row_that_ran_into_the_end_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = {"trained": False, "why": "timed out after 20 s in load"}
    monkeypatch.setattr(Runner, "_values", lambda self, check, workers, limit: iter([dict(late)]))
    check = a_runner(tmp_path, seconds=30)
    check._start(Check(name="a", section="s", job="train", seconds=90), Workers(tmp_path), 0.0)
    check._start(Check(name="b", section="s", job="train", seconds=3), Workers(tmp_path), 0.0)
    assert [(row.trained, row.failed) for row in check.rows if isinstance(row, Result)] == [
        (None, False),
        (False, True),
    ]


def test_an_error_of_the_check_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("losses")

    monkeypatch.setattr(Runner, "_values", broken)
    check = a_runner(tmp_path)
    check.run([Check(name=name, section="s", job="train", parallel=True) for name in "ab"], Workers(tmp_path))
    assert [row["why"] for row in rows(tmp_path / "rows.json")] == ["KeyError: 'losses'"] * 2


# --- comparisons


def side(losses: list[list[float]], digests: list[str]) -> dict[str, Any]:
    return {"trained": True, "sample_losses": losses, "losses": [1.0], "norms": [1.0, 2.0], "digests": digests}


def test_equal_losses_need_equal_tokens() -> None:
    reference = side([[2.0, 4.0], [1.0, 1.0]], ["a", "b", "c", "d"])
    same = equal(side([[2.0, 4.0], [1.0, 1.001]], ["a", "b", "c", "d"]), reference, 2e-3)
    assert same["trained"]
    assert same["loss_difference"] == pytest.approx(1e-3)
    assert same["first_step_difference"] == 0
    other = equal(side([[2.0, 4.0], [1.0, 1.0]], ["a", "b", "c", "x"]), reference, 2e-3)
    assert other["why"] == "other tokens were recorded"
    far = equal(side([[2.0, 4.0], [1.0, 1.1]], ["a", "b", "c", "d"]), reference, 2e-3)
    assert far["why"] == "losses differ by 1.0e-01, more than 0.002"
    nan = equal(side([[2.0, float("nan")], [1.0, 1.0]], ["a", "b", "c", "d"]), reference, 2e-3)
    assert not nan["trained"]


def test_relative_differences_of_the_common_steps() -> None:
    assert relative([1.0, 2.0, 9.0], [1.0, 1.0]) == 1.0


def test_rows_say_whether_their_losses_are_those_of_another_row(tmp_path: Path) -> None:
    check = a_runner(tmp_path)
    check.rows.append(Result("plain", "s", trained=True, tokens_per_second=10.0, facts={"losses": [2.0, 1.0]}))
    row = Result("fast", "s", trained=True, tokens_per_second=25.0, facts={"losses": [2.0, 1.1]})
    check._compare(row, Check(name="fast", section="s", job="train", same_losses_as="plain", tolerance=0.05))
    assert (row.facts["losses_equal"], row.facts["speed_ratio"]) == (False, 2.5)


# --- weights, kernels, waits


@pytest.mark.parametrize("shape", [(5, 3), (50304, 2048), (64, 8, 4)])
def test_weights_differ_between_rows_and_names(shape: tuple[int, ...]) -> None:
    values = torch.arange(weights.TABLE, dtype=torch.float32)
    size = torch.Size(shape)
    one, other = (weights.view_of(values, name, size) for name in ("a.weight", "b.weight"))
    assert one.shape == size
    assert not torch.equal(one, other)
    assert torch.equal(one, weights.view_of(values, "a.weight", size))
    first = one.flatten(1)[:, 0]
    assert len(first.unique()) == shape[0]
    assert torch.equal(one[0].flatten(), first[0] + torch.arange(size[1:].numel()))


def test_the_kernels_of_a_step() -> None:
    kernels = [
        ("void flash::flash_fwd_kernel<Traits<128>>(Params)", 30.0),
        ("sm90_xmma_gemm_bf16", 60.0),
        ("sm90_xmma_gemm_bf16", 10.0),
    ]
    row = profile.summary(kernels)
    assert (row["attention"], row["attention_share"], row["kernels"]) == ("flash::flash_fwd_kernel", 0.3, 3)
    assert row["device_ms"] == pytest.approx(0.1)
    assert row["top"][0] == "70.0% sm90_xmma_gemm_bf16"
    assert profile.summary([])["attention"] == "none"


def test_waits_are_counted_by_their_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> int:
        for _ in range(3):  # the same line each time
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return 7

    code, places = waits.counted(step)
    assert (code, len(places), modes) == (7, 3, ["warn", "default"])
    assert places[0].startswith("test_gpu_check_rows.py:")
    assert "step <" in places[0]


# --- files


def test_the_file_has_one_flat_row_per_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUT", raising=False)
    check = a_runner(tmp_path)
    check.add(Result.of("a", "1.4B", {"trained": True, "mfu": 0.5, "tokens_per_second": 10.0, "attention": "flash"}))
    check.add(Row("tiny", "ddp", "failed in load: no", name="tiny ddp"))
    check.add(runner.machine_row(check.inventory))
    first, second, machine = rows(tmp_path / "rows.json")
    assert all(row.keys() >= KEYS for row in (first, second, machine))
    assert (first["attention"], first["mfu"], first["section"]) == ("flash", 0.5, "1.4B")
    assert (second["why"], second["trained"]) == ("failed in load: no", False)
    assert "torch 2" in machine["packages"]
    check.add(Result.of("d", "s", {"trained": True, "losses": [1.0, float("nan")]}))
    assert rows(tmp_path / "rows.json")[-1]["losses"] == [1.0, None]
    text = (tmp_path / "rows.md").read_text()
    assert text.index("**1.4B**") < text.index("**machine**") < text.index("**memory**")


def test_a_stopped_check_adds_no_rows(tmp_path: Path) -> None:
    check = a_runner(tmp_path)
    check.stopped = True
    check.add(Result("a", "s"))
    assert check.rows == []


def test_a_table_has_only_columns_with_values() -> None:
    text = table(
        [Result("a", "s", trained=True, mfu=0.123), Result("b|c", "s", trained=False, why="out of gpu memory")]
    )
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["what", "MFU", "remarks"]
    assert "12.3%" in lines[2]
    assert "FAILED: out of gpu memory" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_a_worker_that_is_about_to_end_gets_no_other_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled model leaves memory behind; its worker ends, but not at once."""
    slow_to_end = (
        "import sys, time; say('start'); next(sys.stdin); print('{\"row\": {}}'); say('last'); time.sleep(600)"
    )
    preamble = "def say(what): print('{\"end\": true, \"more\": %s}' % str(what == 'start').lower(), flush=True)\n"
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        options |= {"cwd": tmp_path, "env": dict(os.environ)}
        started.append(popen([sys.executable, "-c", preamble + slow_to_end], **options))
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr("scripts.gpu_check.workers.variables_of", lambda device: {})
    workers = Workers(tmp_path)
    try:
        assert [list(workers.run("cpu", {"job": "train"}, PATIENCE)) for _ in range(2)] == [[{}], [{}]]
        assert len(started) == 2
    finally:
        workers.retire("cpu", 0)
        for process in started:
            process.kill()
            process.wait()
