"""Perplexity of what was read under a stated model: compared with single forward passes, kept, resumed, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_evaluations import make_run

from eval import kept
from eval.progress import Reporter
from eval.saturation import perplexity
from eval.saturation.evaluation import Saturation
from eval.saturation.inputs import input_means
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.record.reader import Record
from wellread.run import RunDirectory


def test_files_of_another_corpus_are_not_used(tmp_path: Path) -> None:
    import pyarrow as pa

    from wellread.results import write_table

    run = make_run(tmp_path / "run")
    corpus = Corpus.open(run.corpus)
    table = pa.table({"sample_id": [2, 3], "log_likelihood": [-4.0, -6.0]})
    for key, of in (("aaaaaa1", corpus.hash), ("bbbbbb2", corpus.hash), ("cccccc3", "another")):
        about = {"model": "m@step-4", "key": key, "corpus": of}
        write_table(run.eval / "saturation" / f"perplexity-{key}.parquet", table.replace_schema_metadata(about))
    values = perplexity.likelihoods(run, corpus)
    assert list(values) == ["perplexity_under_m@step-4", "perplexity_under_m@step-4-bbbbbb"]
    for column in values.values():
        assert column[2:4].tolist() == [-4.0, -6.0]
        assert np.isnan(np.delete(column, [2, 3])).all()


@pytest.mark.parametrize(
    ("name", "label"),
    [("runs/a@step-8", "a@step-8"), ("/models/pythia-70m", "pythia-70m"), ("my model/../x y", "x-y")],
)
def test_names_of_models(name: str, label: str) -> None:
    assert perplexity._label(name) == label


def test_the_work_is_the_number_of_samples(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, batches=n) for name, n in (("a", 4), ("b", 2))]
    more = [str(runs[1].path)]
    assert Saturation(runs[0], perplexity="m", more_runs=more).work() == 8 + 4  # two samples per batch, all different
    assert Saturation(runs[0], more_runs=more).work() == 1


@pytest.mark.long
def test_perplexity_under_a_checkpoint(copied_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    corpus, record = Corpus.open(copied_run.corpus), Record.open(copied_run.record)
    model = f"{copied_run.path}@step-12"
    rows = record.table(columns=["batch_id", "sample_id"]).to_pylist()
    with Reporter(1, False) as reporter:
        assert perplexity.size(copied_run) == len({row["sample_id"] for row in rows})
        perplexity.measure(copied_run, corpus, record, model, reporter)
        name = "perplexity_under_run@step-12"
        means = input_means(record, [4, 12], {}, perplexity.likelihoods(copied_run, corpus))[name]

        language_model = AutoModelForCausalLM.from_pretrained(copied_run.checkpoints / "step-00000012" / "model")
        losses: dict[int, tuple[float, int]] = {}
        for i in {row["sample_id"] for row in rows}:
            tokens = torch.tensor(corpus.tokens(i).astype(np.int64))
            with torch.no_grad():
                logp = language_model(tokens[None]).logits[0].double().log_softmax(1)
            scored = [t for t in np.flatnonzero(corpus.targets(i)).tolist() if t > 0]
            losses[i] = (-sum(float(logp[t - 1, tokens[t]]) for t in scored), len(scored))
        for values, spans in ((means.interval, ((0, 4), (4, 12))), (means.cumulative, ((0, 4), (0, 12)))):
            for place, (start, stop) in enumerate(spans):
                parts = [losses[row["sample_id"]] for row in rows if start <= row["batch_id"] < stop]
                expected = math.exp(sum(loss for loss, _ in parts) / sum(n for _, n in parts))
                assert values[place] == pytest.approx(expected, rel=1e-4)

        def fail(*_: Any) -> None:
            raise AssertionError("the model runs again")

        monkeypatch.setattr(kept, "run_directory", fail)
        perplexity.measure(copied_run, corpus, record, model, reporter)  # all is kept


@pytest.mark.long
def test_models_that_cannot_be_used(copied_run: RunDirectory, tmp_path: Path) -> None:
    corpus, record = Corpus.open(copied_run.corpus), Record.open(copied_run.record)

    def measure(model: str) -> None:
        with Reporter(1, False) as reporter:
            perplexity.measure(copied_run, corpus, record, model, reporter)

    with pytest.raises(UserError, match=r"^--perplexity pythia-70: not a directory or a known model"):
        measure("pythia-70")
    with pytest.raises(UserError, match="no checkpoint step-5"):
        measure(f"{copied_run.path}@step-5")
    short = tmp_path / "short"
    short.mkdir()
    for path in (copied_run.checkpoints / "step-00000012" / "model").iterdir():
        (short / path.name).write_bytes(path.read_bytes())
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 16}))
    with pytest.raises(UserError, match=r"^--perplexity .*short: reads 16 tokens, but samples have up to 256"):
        measure(str(short))
