"""Gates and copies as rows of results, kept between calls; whole-set tests on the readings of a record."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from support.small_evaluations import make_run

from eval.membership import checks as module
from eval.membership.checks import Checks, Samples, suspicions, with_corrected_p
from eval.membership.whole_sets import Readings, _repeats, halves, inference_rows, order_rows, write_transcript
from eval.randomness import Randomness
from eval.separation import Ints
from eval.statistics import TooFew
from wellread.corpus.read import Corpus
from wellread.record.reader import Record
from wellread.results import Result

N = 120
MEMBERS, NONMEMBERS, CODE = np.arange(40), np.arange(40, 80), np.arange(80, N)


def make_samples(calls: list[Ints]) -> Samples:
    """80 random texts, of which 41 is a near copy of 1 and 42 an exact copy of 2, and 40 of code."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 60, 30)) for _ in range(80)]
    texts[41], texts[42] = texts[1] + " w1", texts[2]
    texts += [" ".join(f"x = f({word});" for word in rng.integers(0, 60, 20)) for _ in range(40)]

    def texts_at(ids: Ints) -> list[str]:
        calls.append(ids)
        return [texts[i] for i in ids]

    lengths = np.concatenate([rng.integers(20, 40, 80), rng.integers(20, 40, 40)])
    return Samples("hash", texts_at, lambda ids: lengths[ids], [["set"] * N, ["c"] * N], np.arange(N))


def test_rows_of_gates_are_corrected_over_groups_and_kinds(tmp_path: Path) -> None:
    pairs = {"read": (MEMBERS, NONMEMBERS), "read/code": (MEMBERS, CODE), "age:0-10": (MEMBERS[:9], NONMEMBERS)}
    checks = Checks(make_samples([]), seed=0)
    rows = {(kind, row["group"], row["metric"]): row for kind, row in checks.gate_rows(pairs)}
    assert checks.too_small(pairs) == ["age:0-10"]
    assert {group for _, group, _ in rows} == {"read", "read/code"}
    assert rows["words", "read/code", "p"]["value"] == 0.001
    assert rows["words", "read/code", "p_holm"]["value"] == pytest.approx(0.004)  # two kinds of two groups
    assert rows["words", "read/code", "auc"]["value"] > 0.95
    assert rows["words", "read", "p_holm"]["value"] > 0.01
    assert rows["shape", "read", "detectable_auc"]["value"] == pytest.approx(0.676, abs=0.005)
    assert rows["shape", "read", "auc"]["n"] == 40


def test_checks_are_kept_for_the_next_call(tmp_path: Path) -> None:
    calls, pairs, file = list[Ints](), {"read": (MEMBERS, NONMEMBERS)}, tmp_path / "eval" / "checks.json"
    first = Checks(make_samples(calls), seed=0, file=file)
    rows, copies = list(first.gate_rows(pairs)), list(first.copies_rows(pairs))
    first.keep()
    calls.clear()
    second = Checks(make_samples(calls), seed=0, file=file)
    assert list(second.gate_rows(pairs)) == rows
    assert list(second.copies_rows(pairs)) == copies
    assert calls == []
    other_sides, other_seed = {"read": (NONMEMBERS, MEMBERS)}, Checks(make_samples(calls), seed=1, file=file)
    list(second.gate_rows(other_sides))
    list(other_seed.gate_rows(pairs))
    assert len(calls) == 2


def test_copies_are_counted_and_can_be_left_out() -> None:
    checks, pairs = Checks(make_samples([]), seed=0), {"read": (MEMBERS, NONMEMBERS), "code": (MEMBERS, CODE)}
    rows = {(row["group"], row["metric"]): row["value"] for row in checks.copies_rows(pairs)}
    metrics = ("exact_members", "near_members", "exact_nonmembers", "near_nonmembers")
    assert [rows["read", metric] for metric in metrics] == [1, 1, 1, 1]
    assert [rows["code", metric] for metric in metrics] == [0, 0, 0, 0]
    reduced = checks.without_copies(pairs)
    assert list(reduced) == ["read without copies"]
    assert reduced["read without copies"][0].tolist() == [0, *range(3, 40)]
    assert reduced["read without copies"][1].tolist() == [40, *range(43, 80)]


def test_gates_look_at_a_limited_number_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 15)
    calls = list[Ints]()
    list(Checks(make_samples(calls), seed=0).gate_rows({"read": (MEMBERS, NONMEMBERS)}))
    assert [ids.size for ids in calls] == [30]


def test_samples_of_a_corpus_without_a_tokenizer_are_token_numbers(tmp_path: Path) -> None:
    corpus = Corpus.open(make_run(tmp_path / "run").corpus)
    samples = Samples.of(corpus, np.arange(12))
    assert samples.texts(np.array([0, 11])) == ["t5 t6 t7 t9", "t16 t6 t9 t9"]
    assert samples.labels[1][0] == "qa"
    assert samples.lengths(np.array([0])).tolist() == [4]


def result(task: str, metric: str, value: float, step: int = 100) -> Result:
    plain: dict[str, Any] = {"run": "r", "model": "m", "tokens": 0, "n": 9}
    return Result(task=task, metric=metric, value=value, step=step, group="read", **plain)


def test_a_suspect_comparison_is_named() -> None:
    rows = [result("gate/words", "auc", 0.9), result("gate/words", "p", 0.001), result("gate/words", "p_holm", 0.002)]
    assert suspicions(rows) == [
        "ground truth suspect: at step 100, gate/words distinguishes read from its non-members without the model "
        "(AUC 0.900, p 0.002 after Holm)"
    ]
    assert suspicions([result("gate/shape", "p_holm", 0.01), result("membership/loss", "p_holm", 0.001)]) == []


def test_p_values_of_scores_are_corrected_over_the_table() -> None:
    rows = [
        result("membership/loss", "p", 0.01), result("membership/zlib", "p", 0.03), result("gate/words", "p", 0.5),
        result("membership/loss", "p", 0.02, step=200), result("membership/loss", "auc", 0.7),
    ]  # fmt: skip
    corrected = list(with_corrected_p(rows))
    assert [r for r in corrected if r.metric != "p_holm"] == rows
    assert [(r.task, r.step, r.value) for r in corrected if r.metric == "p_holm"] == [
        ("membership/loss", 100, pytest.approx(0.03)),
        ("membership/zlib", 100, pytest.approx(0.04)),
        ("membership/loss", 200, pytest.approx(0.04)),
    ]


# -- tests of whole sets


def readings_of(path: Path) -> tuple[Corpus, Readings]:
    run = make_run(path / "run")
    return Corpus.open(run.corpus), Readings.of(Record.open(run.record), 3, 8, 2, ALL)


def test_readings_come_from_the_record(tmp_path: Path) -> None:
    _, readings = readings_of(tmp_path)
    assert readings.position.tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert readings.batch[:6].tolist() == [0, 0, 1, 1, 2, 2]
    assert readings.times.tolist() == [1] * 6 + [0, 0]
    assert readings.at(np.array([5, 5, 0])).batch.tolist() == [2, 2, 0]


def test_transcript_has_the_columns_of_the_published_script(tmp_path: Path) -> None:
    corpus, readings = readings_of(tmp_path)
    assert write_transcript(tmp_path / "t.parquet", corpus, readings) == 6
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == ["index", "tokens"]
    assert str(table.schema.field("tokens").type) == "list<element: int32>"
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["tokens"].to_pylist() == [corpus.tokens(i).tolist() for i in range(6)]


ALL = Randomness("shuffle", np.array([[0, 1000]]), np.array([], dtype=np.int64), True)


def test_order_test_leaves_out_what_was_not_read_at_random() -> None:
    ids = np.arange(60)
    scores = np.where(ids < 40, ids / 10.0, np.nan)
    readings = Readings(ids * 4, np.zeros(60, np.int64), np.ones(60, np.int64), 4, np.zeros(60, np.int64))
    rows = {row["metric"]: row for row in order_rows(scores, ids, ids, readings, ALL, 0)}
    assert (rows["rho"]["value"], rows["p"]["value"], rows["p"]["n"]) == (pytest.approx(1), 0.001, 40)
    assert set(rows) == {"rho", "p", "z"}
    two_epochs = Readings(readings.position, ids // 20, ids // 20 + 1, 4, ids // 20)
    split = {row["metric"]: row["value"] for row in order_rows(np.tile(scores[:20], 3), ids, ids, two_epochs, ALL, 0)}
    assert (split["rho"], split["p"]) == (pytest.approx(1), 0.001)
    assert split["rho_overall"] == pytest.approx(spearmanr(np.tile(scores[:20], 3), ids).statistic)
    some = Randomness("curriculum", np.array([[0, 30]]), np.array([3, 4]), False)
    assert next(order_rows(scores, ids, ids, readings, some, 0))["n"] == 28
    with pytest.raises(TooFew):
        list(order_rows(scores[:8], ids[:8], ids[:8], readings.at(ids[:8]), ALL, 0))


class Recorded:
    """A record of these batches, int64[batches, batch size], as a curriculum writes it: all in epoch 0."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def table(self, columns: list[str], batches: tuple[int, int]) -> pa.Table:
        read = self.batches[: batches[1]]
        batch_id, slot = (axis.ravel() for axis in np.indices(read.shape))
        zeros = np.zeros(read.size, np.int64)
        values = {"batch_id": batch_id, "slot": slot, "sample_id": read.ravel(), "epoch": zeros, "skipped": zeros > 0}
        return pa.table({name: values[name] for name in columns})


def test_a_phase_that_repeats_its_samples_after_another_phase_gives_no_false_order() -> None:
    """Phase 1 reads the samples 0 … 199 once, phase 2 all 400 one and a half times; the former score higher.

    Without an effect of order, more than 7 of 20 p-values are at most 0.05 with a probability of 3e-6. Among samples
    that were read twice, 0 … 199 were last read in the first pass of phase 2 and the others in the second: compared
    with each other, nearly all runs reject.
    """
    rng, ids, low = np.random.default_rng(5), np.arange(400), 0
    random = Randomness("curriculum", np.array([[0, 25], [25, 100]]), np.array([], dtype=np.int64), False)
    for seed in range(20):
        passes = [rng.permutation(200), rng.permutation(400), rng.permutation(400)[:200]]
        record: Any = Recorded(np.concatenate(passes).reshape(-1, 8))
        readings = Readings.of(record, 100, 400, 8, random)
        scores = rng.normal(size=400) + (ids < 200)
        rows = {row["metric"]: row["value"] for row in order_rows(scores, ids, ids, readings, random, seed)}
        low += rows["p"] <= 0.05
    assert low <= 7


def test_skipped_batches_count_as_repeats_and_phases_begin_again() -> None:
    sample_id, phase = np.array([3, 4, 3, 3, 4, 3]), np.array([0, 0, 0, 1, 1, 1])
    assert _repeats(sample_id, phase).tolist() == [0, 0, 1, 0, 0, 1]


def test_dataset_inference_uses_samples_with_all_scores_and_a_control_finds_nothing() -> None:
    rng, rows = np.random.default_rng(0), np.arange(160)
    values = {"a": rng.normal(size=160) + (rows < 80), "b": np.where(rows % 16 == 0, np.nan, rng.normal(size=160))}
    measured = {row["metric"]: row for row in inference_rows(values, (rows[:80], rows[80:]), (rows[:80], rows[80:]), 0)}
    assert measured["p"]["value"] == 0.001
    assert measured["p"]["n"] == 75
    sides = halves(rows[80:], rows[80:], 0)
    assert sorted(np.concatenate(sides).tolist()) == list(range(80, 160))
    assert sides[0].size == 40
    control = {row["metric"]: row["value"] for row in inference_rows(values, sides, sides, 0)}
    assert control["p"] > 0.01
