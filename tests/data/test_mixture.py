"""Mixtures: which rows are taken, which data set each sample belongs to, and which settings identify a corpus."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import Program

from finetune.prepare import prepare
from wellread.config import RunConfig
from wellread.corpus.digest import corpus_key
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.mixture import Mixture, corpus_settings, shares
from wellread.data.sets import find
from wellread.data.sources.source import Source
from wellread.errors import UserError
from wellread.record.reader import Record
from wellread.run import RunDirectory


def rows_taken(samples: list[list[int]], *sources: Source) -> list[list[int] | None]:
    masks = Mixture(sources).choose([np.array(counts, dtype=np.int64) for counts in samples])
    return [None if mask is None else np.flatnonzero(mask).tolist() for mask in masks]


def test_shares_are_as_large_as_the_smallest_set_allows() -> None:
    assert shares([100, 100], [0.5, 0.5]) == [100, 100]
    assert shares([100, 1000], [0.5, 0.25]) == [100, 50]
    assert shares([100, 1000, 10], [0.5, 0.3, 0.2]) == [25, 15, 10]
    assert shares([12_000, 5_000, 6_432], [0.5, 0.3, 0.2]) == [8333, 5000, 3333]


def test_rows_are_taken_once_and_nested() -> None:
    """A smaller selection is a subset of a larger one; it does not depend on the other data sets."""
    ones = [1] * 1000
    ((few,), (many,)) = (rows_taken([ones], Source(name="a", limit=n)) for n in (50, 300))
    assert few is not None
    assert many is not None
    assert (len(few), len(many)) == (50, 300)
    assert set(few) < set(many)
    assert 350 < np.mean(many) < 650  # from all parts of the data set
    assert rows_taken([ones, [1] * 7], Source(name="a", limit=50), Source(name="b")) == [few, None]


def test_weights_count_samples_instead_of_rows() -> None:
    """A row with four samples counts four times; rows without samples are never taken."""
    fours = [4, 0] * 100
    rows = rows_taken([[1] * 200, fours], Source(name="a", weight=0.5), Source(name="b", weight=0.5))
    assert [len(indices or []) for indices in rows] == [200, 50]
    assert all(row % 2 == 0 for row in rows[1] or [])


def test_more_rows_than_a_set_has() -> None:
    with pytest.raises(UserError) as refused:
        rows_taken([[1] * 20 + [0]], Source(name="a", limit=21, hub="x/a"))
    assert str(refused.value) == "--data a:21: x/a has 20 rows; request at most that many"


def write(path: Path, n: int, **more: Any) -> Path:
    path.write_text(
        "".join(json.dumps({"instruction": f"{path.stem} {i}?", "response": f"{i}.", **more}) + "\n" for i in range(n))
    )
    return path


def config(tmp_path: Path, data: str, **more: Any) -> RunConfig:
    return RunConfig.of(data=data, corpora=str(tmp_path / "corpora"), holdout=0.25, **more)


def test_each_sample_refers_to_its_data_set(tmp_path: Path) -> None:
    amounts = (("a", 60, 0.5), ("b", 200, 0.3), ("c", 90, 0.2))
    data = ",".join(f"{write(tmp_path / f'{name}.jsonl', n)}:{weight}" for name, n, weight in amounts)
    corpus = Corpus.open(prepare(config(tmp_path, data)))
    assert corpus.path.name.startswith("a+b+c-")
    assert corpus.set_names == ("a", "b", "c")
    ids = np.arange(corpus.n)
    assert np.bincount(corpus.sets(ids)).tolist() == [60, 36, 24]
    assert corpus.sets(ids[::-1]).tolist() == corpus.sets(ids).tolist()[::-1]
    table = corpus.samples().to_pydict()
    assert [corpus.set_names[i] for i in corpus.sets(ids)] == table["source"]
    rows = {name: [*map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())] for name in "abc"}
    assert len({(name, *of) for name, of in zip(table["source"], table["rows"], strict=True)}) == 120  # no duplicates
    tokenizer = Tokenizer.load(corpus.tokenizer)
    for i in (0, 40, 70, 119):
        row = rows[table["source"][i]][table["rows"][i][0] - 1]
        assert f"\n{row['instruction']}\n" in tokenizer.decode(corpus.tokens(i))
    assert [(s["name"], s["rows"], s["taken"]) for s in corpus.meta["sets"]] == [
        ("a", 60, 60), ("b", 200, 36), ("c", 90, 24),
    ]  # fmt: skip
    sealed = corpus.sets(ids[corpus.n_trainable :])
    assert set(sealed.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("first", [True, False])
def test_a_weighted_data_set_without_a_usable_row_is_named(first: bool, tmp_path: Path) -> None:
    sets = [f"{write(tmp_path / 'ok.jsonl', 20)}:0.5", f"{tmp_path / 'bad.jsonl'}:0.5"]
    rows = [{"instruction": "", "response": "x"}] * 3
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ",".join(sets if first else sets[::-1])
    with pytest.raises(UserError) as error:
        prepare(config(tmp_path, data, max_bad_rows=10))
    assert str(error.value) == (
        f"{tmp_path / 'bad.jsonl'}: has no usable row, so no share of it can be taken; leave it out of --data"
    )


def test_copies_in_two_data_sets_are_both_sealed_or_both_trainable(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", 100)
    (tmp_path / "b.jsonl").write_bytes(one.read_bytes())
    corpus = Corpus.open(prepare(config(tmp_path, f"{one},{tmp_path / 'b.jsonl'}")))
    table = corpus.samples().to_pydict()
    sides: dict[int, set[str]] = {}
    for document, split in zip(table["document"], table["split"], strict=True):
        sides.setdefault(document, set()).add(split)
    assert (corpus.n, len(sides), max(map(len, sides.values()))) == (200, 100, 1)


def test_settings_that_identify_a_corpus(tmp_path: Path) -> None:
    """Amounts, templates and their content are part of a corpus's name; the location of a file is not."""
    a, b = write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 30)
    (tmp_path / "mine.txt").write_text("{instruction} {response}")

    def name(data: str, **more: Any) -> str:
        return corpus_key(corpus_settings(config(tmp_path, data, **more).data, find(data), "t"))

    custom = {"template": str(tmp_path / "mine.txt")}
    names = [
        name(f"{a},{b}"), name(f"{b},{a}"), name(f"{a}:0.5,{b}:0.5"), name(f"{a}:0.4,{b}:0.6"), name(f"{a}:5,{b}"),
        name(f"{a},{b}", template="qa"), name(f"{a},{b}", loss_on="all"), name(f"{a},{b}", **custom),
    ]  # fmt: skip
    (tmp_path / "mine.txt").write_text("{instruction}: {response}")
    names.append(name(f"{a},{b}", **custom))
    assert len(set(names)) == len(names)
    (tmp_path / "elsewhere").mkdir()
    a.rename(tmp_path / "elsewhere" / "a.jsonl")
    assert name(f"{tmp_path / 'elsewhere' / 'a.jsonl'},{b}") == names[0]
    write(tmp_path / "a.jsonl", 31)
    assert name(f"{a},{b}") != names[0]


def test_other_weights_and_templates_change_the_hash(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 30)
    (tmp_path / "d").mkdir()
    compiled = [
        Corpus.open(prepare(config(tmp_path / folder, f"{a}:{weight},{b}:0.5", template=template)))
        for folder, weight, template in ((".", 0.5, None), ("d", 0.5, None), (".", 0.25, None), (".", 0.5, "qa"))
    ]
    assert len({corpus.hash for corpus in compiled}) == 3
    assert compiled[0].hash == compiled[1].hash  # compiled again: the same samples in the same order


@pytest.mark.slow
def test_tensorboard_has_the_loss_of_each_data_set(program: Program, root: Path, tmp_path: Path) -> None:
    """The losses of the data sets equal the losses in the record, averaged over targets."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDirectory(tmp_path / "run")
    other = tmp_path / "mine.jsonl"
    lines = (root / "configs/data/sample.jsonl").read_text().splitlines(keepends=True)
    other.write_text("".join(line.replace('"instruction": "', '"instruction": "Please: ') for line in lines[:80]))
    flags = f"--data sample:40,{other}:60 --model tiny --steps 2 --batch_size 16 --seq_len 64 --save_every 2"
    paths = ["--out", run.path, "--corpora", tmp_path / "corpora"]
    program("launch", "run", "finetune", *flags.split(), *paths, check=True)
    events = EventAccumulator(str(run.tb))
    events.Reload()
    rows, corpus = Record.open(run.record).table().to_pandas(), Corpus.open(run.corpus)
    assert corpus.set_names == ("sample", "mine")
    for step, batch in rows.groupby("step"):
        sets = corpus.sets(batch["sample_id"].to_numpy())
        for number, name in enumerate(corpus.set_names):
            of_set = batch[sets == number]
            logged = [s.value for s in events.Scalars(f"train/loss_of/{name}") if s.step == step]
            assert logged == [
                pytest.approx((of_set["loss"] * of_set["n_targets"]).sum() / of_set["n_targets"].sum(), rel=1e-5)
            ]
