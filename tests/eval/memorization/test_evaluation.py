"""The evaluation `memorization` on a run of 12 samples, whose model is replaced by columns made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_evaluations import make_run

from eval import kept
from eval.__main__ import main
from eval.intervals import upper_limit
from wellread.errors import UserError
from wellread.files import write_json
from wellread.results import read
from wellread.run import RunDirectory
from wellread.tokens import Tokens

FLAGS = ("--prefix", "1", "--suffix", "1")
"""The samples have two target tokens."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """Samples 0 to 7 are read in this order, two per batch. Of those that were read, even ones have rank 0, p = .8.

    All others have rank 1 and p = .1; sample 8, which is sealed, has no finite loss.
    """

    def run_model(checkpoint: Any, corpus: Any, ids: Any, how: Any, progress: Any) -> Iterator[Tokens]:
        progress(ids.size)
        sure = (ids < 2 * checkpoint.step) & (ids % 2 == 0)
        p = np.where(ids == 8, np.nan, np.where(sure, 0.8, 0.1))
        two = {"logp": np.log(p), "rank": np.where(sure, 0, 1), "top40": np.zeros(ids.size)}
        columns = {name: np.repeat(values, 2) for name, values in two.items()}
        zeros = np.zeros(2 * ids.size)
        yield Tokens(sample_id=ids, bounds=2 * np.arange(ids.size + 1), mu=zeros, sigma=zeros, **columns)

    monkeypatch.setattr(kept, "_run_model", run_model)
    return make_run(tmp_path / "run")


def values(run: RunDirectory) -> dict[tuple[int, str, str], tuple[float, int]]:
    return {(r.step, r.group, r.metric): (r.value, r.n) for r in read(run.eval / "memorization.parquet")}


def test_shares_by_hand(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memorization", str(run.path), *FLAGS, "--rate", "0.01"]) == 0
    of = values(run)
    assert of[2, "read", "extractible"] == of[2, "read", "matched"] == (0.5, 4)
    assert of[2, "unread", "extractible"] == (0, 4)
    assert of[4, "sealed", "extractible"] == (0, 3)
    assert of[4, "sealed", "undefined"] == (1, 4)
    assert of[4, "sealed", "too_short"] == (0, 4)
    assert of[4, "read", "drawn@1"] == (pytest.approx((0.8 + 0.1) / 2), 8)
    assert of[4, "read", "drawn@100"] == (pytest.approx((1 + 1 - 0.9**100) / 2), 8)
    assert of[4, "read", "discoverable@1,0.5"] == (0.5, 8)
    assert of[4, "read", "discoverable@1,0.9"] == (0, 8)
    assert of[4, "read", "discoverable@100,0.9"] == (1, 8)
    assert of[4, "age:0-10", "extractible"] == of[4, "times:1", "extractible"] == (0.5, 8)
    assert of[4, "copies:1", "extractible"] == (0.5, 8)
    assert (0, "read", "extractible") not in of
    rows = {(r.step, r.group, r.metric): r for r in read(run.eval / "memorization.parquet")}
    sealed = rows[4, "sealed", "extractible"]
    assert (sealed.task, sealed.ci_low, sealed.ci_high) == ("memorization/1_1", 0, upper_limit(3))
    printed = capsys.readouterr()
    assert "prefix: the prompt and the first 1 target token; suffix: the next 1 token" in printed.err
    assert "no sample of 299 documents would show a rate of at most 0.01" in printed.err
    assert "step 4: the suffix of 1 sample is not defined" in printed.err
    assert "sealed 0 of 3 (at most 63.2%)" in printed.err
    assert "drawn@1000" in printed.out


def test_samples_that_are_too_short(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memorization", str(run.path), "--steps", "4"]) == 0
    assert values(run)[4, "read", "too_short"] == (8, 8)
    assert not [key for key in values(run) if key[2] == "extractible"]
    printed = capsys.readouterr().err
    assert "12 of 12 samples at step 4 too short, left out" in printed
    assert "extractible: no sample is long enough" in printed


def test_numbers_of_copies(tmp_path: Path, run: RunDirectory) -> None:
    copies = make_run(tmp_path / "copies", copies=True)  # samples 0 and 7 are the same document
    assert main(["memorization", str(copies.path), *FLAGS, "--steps", "4"]) == 0
    assert values(copies)[4, "copies:1", "extractible"] == (0.5, 6)
    assert values(copies)[4, "copies:2", "extractible"] == (0.5, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prefix", "0"), "--prefix 0: must be at least 1"),
        (("--suffix", "0"), "--suffix 0: must be at least 1"),
        (("--max_samples", "0"), "--max_samples 0: must be at least 1"),
        (("--tries", "1,x"), "--tries x: expected numbers of draws of at least 1, e.g. 1,100,1000"),
        (("--tries", "0"), "--tries 0: expected numbers of draws of at least 1, e.g. 1,100,1000"),
        (("--rate", "0"), "--rate 0.0: must be between 0 and 1"),
        (("--rate", "1"), "--rate 1.0: must be between 0 and 1"),
    ],
)
def test_mistakes(flags: tuple[str, ...], message: str, run: RunDirectory) -> None:
    with pytest.raises(UserError) as error:
        main(["memorization", str(run.path), *flags])
    assert str(error.value) == message


def set_order(run: RunDirectory, phases: list[str]) -> None:
    """A curriculum with these phases of one batch each, which inserts sample 7."""
    manifest = {"identity": {"order": {"kind": "curriculum", "pass": "sequential", "batch_size": 2}}, "attempts": []}
    write_json(run.manifest_file, manifest)
    notes = [{"name": "p", "order": order, "start": i, "stop": i + 1} for i, order in enumerate(phases)]
    write_json(run.order_notes, {"phases": notes, "inserted": [{"sample_id": 7}]})


def test_unread_is_a_control_where_the_record_is_random(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """One shuffled phase with insertions is a random draw, as in membership; a sorted one or several are not."""
    words = ["memorization", str(run.path), *FLAGS, "--steps", "2"]
    set_order(run, ["shuffle"])
    assert main(words) == 0
    assert values(run)[2, "unread", "extractible"] == (0, 3)  # without the sample of the insertion
    assert "not a control" not in capsys.readouterr().err
    for phases, why in ((["sorted:n_tokens:asc"], "the order is curriculum"), (["shuffle"] * 2, "several phases")):
        set_order(run, phases)
        assert main(words) == 0
        assert "unread" not in {group for _, group, _ in values(run)}
        line = capsys.readouterr().err
        assert "unread samples are not a control and are left out: the " in line
        assert why in line
