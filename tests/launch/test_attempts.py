"""Attempts: the manifest's entry of each start, and which rank failed first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launch import attempts
from wellread import provenance
from wellread.files import write_json
from wellread.planning.machine import Machine
from wellread.planning.plan import Counts, Plan
from wellread.run import RunDirectory

PLAN = Plan(
    model="tiny", machine=Machine(cluster="slurm", device="cuda", nodes=2, ranks_per_node=4),
    counts=Counts(samples=4, trainable=4, sealed=0, exact=True), batch_size=8, micro_batch_size=1, accumulation=1,
    dtype="bf16", engine="deepspeed", strategy="zero3", strategy_reason="", seq_len=8,
    steps=1, epochs=1.0, warmup_steps=0, save_steps=(0, 1),
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    directory.log.mkdir()
    write_json(directory.manifest_file, {"version": 1, "identity": {"seed": 0}, "attempts": []})
    return directory


def note(run: RunDirectory, attempt: int, rank: int, time: float, **more: Any) -> None:
    error = {"time": time, "rank": rank, "error": f"error of {rank}", "trace": ""}
    write_json(run.log / f"attempt-{attempt:03d}-rank-{rank}.error.json", error | more)


def test_each_start_is_in_the_manifest(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "describe", lambda code: {"code": str(code), "host": "n1"})
    assert attempts.begin(run, PLAN, {"job": "28", "restart": 0, "hosts": ["n1", "n2"]}, Path("/runs/x/code")) == 1
    (first,) = run.manifest()["attempts"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", first.pop("started"))
    assert first == {
        "attempt": 1, "cluster": "slurm", "strategy": "zero3", "ranks": 8, "nodes": 2, "ranks_per_node": 4,
        "device": "cuda", "job": "28", "restart": 0, "hosts": ["n1", "n2"], "code": "/runs/x/code", "host": "n1",
        "grad_accum_dtype": None,
    }  # fmt: skip

    attempts.end(run, 1, 143)
    assert attempts.begin(run, PLAN, {"hosts": []}) == 2
    attempts.end(run, 2, 0)
    one, two = run.manifest()["attempts"]
    assert (one["attempt"], one["exit_code"], one["job"]) == (1, 143, "28")
    assert (two["attempt"], two["exit_code"], two["code"]) == (2, 0, "None")
    assert "job" not in two
    assert re.fullmatch(r"20\d\d-.*[+-]\d{4}", two["ended"])
    assert run.manifest()["identity"] == {"seed": 0}


def test_the_default_code_is_the_callers(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    write_json(tmp_path / "code" / provenance.SNAPSHOT, {"commit": "abc", "dirty": False})
    attempts.begin(run, PLAN, {}, tmp_path / "code")
    attempts.begin(run, PLAN, {})
    with_code, without_code = run.manifest()["attempts"]
    assert with_code["code"] == {"commit": "abc", "dirty": False}
    assert without_code["code"] == provenance.code(provenance.ROOT)
    assert set(with_code) >= {"host", "python", "platform", "packages", "gpus", "gpu_driver"}


def test_the_first_error_is_the_earliest_of_its_attempt(run: RunDirectory) -> None:
    assert attempts.first_error(run, 2) is None
    note(run, 1, 5, time=1.0)
    note(run, 2, 0, time=103.5)
    note(run, 2, 10, time=102.25)
    note(run, 2, 3, time=1e3)
    (run.log / "attempt-002-rank-1.log").write_text("not JSON")
    error = attempts.first_error(run, 2)
    assert error is not None
    assert (error["rank"], error["error"]) == (10, "error of 10")
    attempts.note_signal(run, 2, 1, 9)  # written later, but still the cause
    error = attempts.first_error(run, 2)
    assert error is not None
    assert (error["rank"], error["error"]) == (1, "ended by signal 9 (SIGKILL)")


def test_the_first_error_is_printed_in_one_line(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    attempts.show_first_error(run, 1)
    assert capsys.readouterr() == ("", "")
    note(run, 1, 1, time=2.0)
    note(run, 1, 0, time=3.0)
    attempts.show_first_error(run, 1)
    assert capsys.readouterr() == ("", f"error: rank 1 failed first: error of 1 (log: {run.log})\n")


def test_a_signal_has_an_error_file(run: RunDirectory) -> None:
    attempts.note_signal(run, 3, 7, 11)
    error = attempts.first_error(run, 3)
    assert error is not None
    assert (error["rank"], error["error"], error["signal"]) == (7, "ended by signal 11 (SIGSEGV)", 11)
    assert [path.name for path in run.log.iterdir()] == ["attempt-003-rank-7.error.json"]
    assert json.loads((run.log / "attempt-003-rank-7.error.json").read_text())["trace"] == ""


def test_ranks_without_an_error_or_with_a_signal_are_lost(run: RunDirectory) -> None:
    assert attempts.lost_ranks(run, 1, 3) == [0, 1, 2]
    note(run, 1, 0, time=1.0)
    note(run, 1, 2, time=1.0, signal=9)
    note(run, 2, 1, time=1.0)  # of another attempt
    assert attempts.lost_ranks(run, 1, 3) == [1, 2]
    note(run, 1, 1, time=1.0)
    note(run, 1, 2, time=1.0)
    assert attempts.lost_ranks(run, 1, 3) == []
