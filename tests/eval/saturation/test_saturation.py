"""The command `saturation`: its table, summary, figures and mistakes; values of items are synthetic."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.small_evaluations import make_run

from eval.__main__ import main
from eval.generations.evaluation import Generations
from eval.items import Items
from eval.saturation import outputs
from eval.saturation.evaluation import Saturation
from eval.saturation.table import Row, read, schema
from wellread import results
from wellread.checkpoint import Checkpoint, list_checkpoints
from wellread.corpus.read import Corpus
from wellread.corpus.tables import add_metrics
from wellread.data import sample_metrics, text_metrics
from wellread.errors import UserError
from wellread.files import read_json, write_json
from wellread.planning.plan import Plan
from wellread.planning.rate import planned_rate
from wellread.run import RunDirectory

N = 32
COLUMNS = ["metric", "verdict", "step", "tokens", "learning_rate", "n", "p"]


def values_at(step: int, metric: str) -> np.ndarray:
    """32 items: `falls` falls from 3 to 1 between steps 0 and 2, `flat` does not move, `still` is 7."""
    rng = np.random.default_rng([step, *metric.encode()])
    means = {"g/falls": 3 - min(step, 2), "g/flat": 0, "h/falls": 0}
    items = np.random.default_rng(0).normal(0, 1, N)
    return np.full(N, 7.0) if metric == "g/still" else items + means[metric] + rng.normal(0, 0.01, N)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run with checkpoints at 0, 2, …, 10 whose generations offer three metrics."""

    def items(cls: type, run: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        for metric in ("g/falls", "g/flat", "g/still"):
            values = values_at(checkpoint.step, metric)
            yield Items(
                metric=metric,
                ids=np.arange(N),
                documents=np.arange(N),
                values=values,
                form="power" if "f" in metric else None,
                flags="--new_tokens 8",
            )

    monkeypatch.setattr(Generations, "items", classmethod(items))
    run = make_run(tmp_path / "run", batches=4)
    about: dict[str, Any] = {"run": "run", "model": "m", "task": "generations", "n": N, "group": "g", "metric": "falls"}
    rows = [
        results.Result(**about, step=c.step, tokens=c.tokens, value=3.0 - c.step, ci_low=2.0 - c.step, ci_high=4.0)
        for c in list_checkpoints(run.checkpoints)
    ]
    results.write(run.eval / "generations.parquet", rows[-1:])  # a later call with --steps last
    monkeypatch.setattr(Generations, "of_kept", classmethod(lambda cls, run: iter(rows)))
    return run


def saturation(run: RunDirectory, *flags: str) -> list[Row]:
    assert main(["saturation", str(run.path), *flags]) == 0
    return read(run.eval / "saturation.parquet")


def test_the_table(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.metric: row for row in saturation(run)}
    assert pq.read_schema(run.eval / "saturation.parquet").names == COLUMNS == schema().names
    falls = rows["g/falls"]
    assert (falls.verdict, falls.step, falls.tokens, falls.n) == ("saturated", 2, 16, N)
    assert falls.learning_rate == planned_rate(1, Plan.open(run.plan_file), run.config().optim)  # of batch 1
    assert falls.p < 0.05
    assert (rows["g/flat"].verdict, rows["g/flat"].step, rows["g/flat"].learning_rate) == ("no change", None, None)
    assert (rows["g/still"].verdict, rows["g/still"].p) == ("no change", 1.0)
    output = capsys.readouterr()
    assert "g/still: 7 for every text at every checkpoint; no test" in output.err
    assert f"to add them: wellread saturation {run.path} --metrics" in output.err
    assert output.out.splitlines()[0].split() == ["metric", "verdict", "step", "learning_rate", "p", "n"]


def test_the_summary(run: RunDirectory) -> None:
    saturation(run, "--csv")
    table = pq.read_table(run.eval / "saturation" / "summary.parquet").to_pylist()
    assert [row["step"] for row in table] == [0, 2, 4]
    assert [row["g/falls"] for row in table] == [3.0, 1.0, -1.0]
    assert table[1]["g/falls_low"] == 0.0
    assert table[0]["read interval/loss"] is None
    # losses of batch b: 4 - b with 1 target and 2 - b / 4 with 3 targets
    losses = [(4 - b + 3 * (2 - b / 4)) / 4 for b in range(4)]
    assert table[1]["read interval/loss"] == pytest.approx(np.mean(losses[:2]))
    assert table[2]["read interval/loss"] == pytest.approx(np.mean(losses[2:]))
    assert table[2]["read cumulative/loss"] == pytest.approx(np.mean(losses))
    batches = pq.read_table(run.eval / "saturation" / "batches.parquet").to_pydict()
    assert batches["batch"] == [0, 1, 2, 3]
    assert batches["loss"] == pytest.approx(losses)
    assert batches["perplexity"] == pytest.approx(np.exp(losses))
    with open(run.eval / "saturation" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["g/falls"]) for row in rows] == [3.0, 1.0, -1.0]
    assert {path.name for path in (run.eval / "saturation").glob("*.png")} == {
        "output-falls.png", "read-loss.png", "read-perplexity.png", "batch-loss.png", "batch-perplexity.png",
    }  # fmt: skip
    assert (run.eval / "saturation" / "output-falls.png").read_bytes().startswith(b"\x89PNG")


def test_the_record_and_the_metrics_are_opened_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for module, name in ((outputs, "metrics_of"), (outputs.perplexity, "likelihoods")):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *of, name=name, function=function: (opened.append(name), function(*of))[1]
        )
    assert list(outputs.write_summary(run, csv=False))
    assert opened == ["metrics_of", "likelihoods"]


def test_the_section(run: RunDirectory) -> None:
    saturation(run)
    page = (run.report / "index.html").read_text()
    assert "Saturation: when did each metric stop changing?" in page
    assert "1 saturated, 2 no change." in page
    (row,) = (each for each in read(run.eval / "saturation.parquet") if each.step is not None)
    share = f"{(row.learning_rate or 0) / (run.config().optim.lr or 1):.0%}"
    assert f"<b>g/falls</b> is saturated from step 2 on: 16 tokens read, {share} of the peak learning rate." in page
    assert "<dt>no change</dt><dd>g/flat, g/still: a change of the size that matters would have been seen" in page
    step_2 = pq.read_table(run.eval / "saturation" / "summary.parquet").to_pylist()[1]
    assert "<td>the start</td>" in page
    assert f'<td data-value="{step_2["read cumulative/loss"]}">{step_2["read cumulative/loss"]:.4g}</td>' in page
    assert "3 metrics, each of 32 texts." in page
    assert "Read: loss" in page


def test_texts_that_end_before_the_run(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with checkpoints at 0, 2, 4, 6 and texts up to 4: the command and the page say so."""
    items, longer = Generations.items, make_run(tmp_path / "longer", batches=6)
    saturation(run)
    assert "verdicts are about" not in capsys.readouterr().err + (run.report / "index.html").read_text()

    def until_4(cls: type, of: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        yield from items(of, checkpoint) if checkpoint.step <= 4 else ()

    monkeypatch.setattr(Generations, "items", classmethod(until_4))
    rows = saturation(longer)
    line = "verdicts are about the steps up to 4, the run has checkpoints up to 6; to compare all: wellread generations"
    assert line in capsys.readouterr().err
    assert line in (longer.report / "index.html").read_text()
    assert rows[0].step == 2  # in the first half of the 4 steps that are compared


def test_a_report_without_text_metrics_names_the_command(run: RunDirectory) -> None:
    saturation(run)
    assert main(["report", str(run.path)]) == 0
    page = (run.report / "index.html").read_text()
    assert "what was read has no text metrics, only losses; to add them: " in page
    assert f"wellread saturation {run.path} --metrics" in page
    assert "Written: falls" in page


def test_scores_of_another_program_are_not_text_metrics(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sample has no score: it is left out of the mean, and texts are measured as without scores."""
    scores = np.arange(Corpus.open(run.corpus).n, dtype=float)
    scores[5] = np.nan
    add_metrics(run.corpus, {"influence": scores})
    saturation(run, "--only", "still")
    table = pq.read_table(run.eval / "saturation" / "summary.parquet").to_pylist()
    assert [row["read interval/influence"] for row in table] == [None, np.mean([0, 1, 2, 3]), np.mean([4, 6, 7])]
    assert table[2]["read cumulative/influence"] == pytest.approx(np.mean([0, 1, 2, 3, 4, 6, 7]))
    printed = capsys.readouterr().err
    assert f"to add them: wellread saturation {run.path} --metrics" in printed
    assert "influence: 1 of 8 samples that the run has read have no value and are not in the means" in printed

    def measured(corpus: Corpus, ids: np.ndarray, show: Any) -> np.ndarray:
        return np.tile(ids[:, None], (1, len(text_metrics.NAMES))).astype(np.float32)

    monkeypatch.setattr(sample_metrics, "measure", measured)
    saturation(run, "--only", "still", "--metrics")
    table = pq.read_table(run.eval / "saturation" / "summary.parquet").to_pylist()
    assert table[2]["read interval/words"] == np.mean([4, 5, 6, 7])
    assert table[2]["read interval/influence"] == np.mean([4, 6, 7])
    assert "to add them" not in capsys.readouterr().err


def test_a_report_without_saturation_names_the_command(run: RunDirectory) -> None:
    assert main(["report", str(run.path)]) == 0
    assert f"wellread saturation {run.path}" in (run.report / "index.html").read_text()


def test_fits_that_cannot_be_made_are_rows(run: RunDirectory) -> None:
    saturation(run)
    rows = pq.read_table(run.eval / "saturation" / "fits.parquet").to_pylist()
    assert [(row["metric"], row["verdict"], row["asymptote"]) for row in rows] == [
        ("g/falls", "no fit", None),
        ("g/flat", "no fit", None),
    ]
    assert rows[0]["reason"] == "needs 5 checkpoints after step 0, there are 2"


def test_only_some_metrics(run: RunDirectory) -> None:
    assert [row.metric for row in saturation(run, "--only", "flat")] == ["g/flat"]
    assert [row.metric for row in saturation(run, "--only", "g/falls, still")] == ["g/falls", "g/still"]
    message = "--only words: .* has no such metric; choose from g/falls, g/flat, g/still"
    with pytest.raises(UserError, match=message):
        saturation(run, "--only", "words")


def test_several_runs(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_run(tmp_path / "other", batches=4)
    saturation(run, str(other.path), "--only", "falls")
    assert [row.metric for row in read(other.eval / "saturation.parquet")] == ["g/falls"]
    assert (
        f"g/falls: run: saturated at step 2, {other.path}: saturated at step 2; at the end" in capsys.readouterr().err
    )


def test_the_band_between_runs(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_run(tmp_path / "other", batches=6)
    saturation(run, str(other.path), "--only", "falls")
    table = pq.read_table(run.eval / "saturation" / "runs.parquet")
    assert table.schema.metadata[b"runs"].decode().splitlines() == [str(run.path), str(other.path)]
    rows = table.to_pylist()
    assert [(row["metric"], row["step"], row["runs"]) for row in rows] == [("g/falls", step, 2) for step in (0, 2, 4)]
    for row in rows:  # both runs have the same items
        assert row["low"] == row["high"] == row["mean"] == pytest.approx(values_at(row["step"], "g/falls").mean())
        assert row["sd"] == 0
    assert (run.eval / "saturation" / "runs-falls.png").read_bytes().startswith(b"\x89PNG")
    assert "the runs differ" not in capsys.readouterr().err

    manifest = read_json(other.manifest_file)
    manifest["identity"]["order"] |= {"batch_size": 4, "seed": 7}
    write_json(other.manifest_file, manifest)
    saturation(run, str(other.path), "--only", "falls")
    assert "the runs differ not only in their seed, but also in order.batch_size\n" in capsys.readouterr().err


def test_runs_of_one_name_keep_their_own_tables(run: RunDirectory, tmp_path: Path) -> None:
    other = make_run(tmp_path / "elsewhere" / run.name, batches=6)
    alone = saturation(run, "--only", "falls")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(other.path.parent)
        assert saturation(run, run.name, "--only", "falls") == alone
    assert read(run.eval / "saturation.parquet") == alone
    assert read(other.eval / "saturation.parquet") != alone


def test_two_runs_without_a_common_metric(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_run(tmp_path / "other", batches=4)
    items = Generations.items

    def of_other(cls: type, of: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        for each in items(of, checkpoint):
            yield Items(**{**vars(each), "metric": f"{of.name}/{each.metric}"})

    monkeypatch.setattr(Generations, "items", classmethod(of_other))
    with pytest.raises(UserError, match=r"/run and .*/other: no metric in common; evaluate both alike"):
        saturation(run, str(other.path))


@pytest.mark.parametrize(("batches", "count"), [(0, "1 checkpoint"), (2, "2 checkpoints")])
def test_fewer_than_three_checkpoints(run: RunDirectory, tmp_path: Path, batches: int, count: str) -> None:
    short = make_run(tmp_path / "short", batches=batches)
    with pytest.raises(UserError, match=f"has {count}, and saturation needs at least 3; train further, or with a sma"):
        saturation(short)


def test_values_at_fewer_than_three_checkpoints(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    items = Generations.items

    def at_first(cls: type, of: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        yield from items(of, checkpoint) if checkpoint.step < 4 else ()

    monkeypatch.setattr(Generations, "items", classmethod(at_first))
    line = rf"g/falls has values at 2 checkpoints \(0, 2\), and saturation .* run wellread generations {run.path} --st"
    with pytest.raises(UserError, match=line):
        saturation(run)


def test_a_run_without_generations(tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", batches=4)
    with pytest.raises(UserError, match=f"values of single texts; run wellread generations {bare.path}"):
        saturation(bare)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": 0.0}, "--margin 0: must be above 0 and below 1"),
        ({"margin": 1.0}, "--margin 1: must be above 0 and below 1"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Saturation(RunDirectory(tmp_path), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.arange(N)[::-1]}, "g/falls at step 4 has other texts than at step 0; run wellread generations"),
        (
            {"flags": "--new_tokens 9"},
            "g/falls was measured with --new_tokens 9 at step 4, with --new_tokens 8 at step 0; run wellread",
        ),
        ({"values": np.full(N, np.nan)}, "g/falls of item 0 at step 4 is not finite; the run has diverged"),
    ],
)
def test_items_that_cannot_be_compared(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    items = Generations.items

    def changed(cls: type, of: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        for each in items(of, checkpoint):
            yield Items(**vars(each) | change) if checkpoint.step == 4 else each

    monkeypatch.setattr(Generations, "items", classmethod(changed))
    with pytest.raises(UserError, match=message):
        saturation(run)


def test_texts_of_other_flags_are_not_in_one_summary(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--only` chooses what is judged; the summary has all metrics."""
    items = Generations.items

    def changed(cls: type, of: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        for each in items(of, checkpoint):
            longer = checkpoint.step == 4 and each.metric == "g/falls"
            yield Items(**vars(each) | {"flags": "--new_tokens 9"}) if longer else each

    monkeypatch.setattr(Generations, "items", classmethod(changed))
    with pytest.raises(UserError, match="g/falls was measured with --new_tokens 9 at step 4, with --new_tokens 8 at"):
        saturation(run, "--only", "still")
    assert not (run.eval / "saturation" / "summary.parquet").exists()


def test_texts_of_other_flags_are_not_compared_between_runs(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, items = make_run(tmp_path / "other", batches=4), Generations.items

    def changed(cls: type, of: RunDirectory, checkpoint: Checkpoint) -> Iterator[Items]:
        for each in items(of, checkpoint):
            yield Items(**vars(each) | {"flags": "--new_tokens 9"}) if of.name == "other" else each

    monkeypatch.setattr(Generations, "items", classmethod(changed))
    message = r"g/falls was measured with --new_tokens 8 in .*/run, with --new_tokens 9 in .*/other; run wellread gener"
    with pytest.raises(UserError, match=message):
        saturation(run, str(other.path))
