"""A run on marked texts is found, and other coins give uniform p-values; scores do not depend on coins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest
from support.programs import Program
from support.small_evaluations import make_run

from eval.__main__ import main
from eval.marks.evaluation import MarksEvaluation
from eval.marks.statistics import Places, redraw_p
from eval.marks.variants import Variants, places_of
from wellread.config import CONFIGS
from wellread.corpus.marks import Marks
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.errors import UserError
from wellread.models.load import loaded
from wellread.models.score import score_tokens
from wellread.record.verify import verify
from wellread.results import read
from wellread.run import RunDirectory

DATA = ["--data", "stories:40", "--vocab", "512", "--seq_len", "64", "--marks", CONFIGS / "marks" / "punctuation.yaml"]
SETTINGS = [
    "--size", "96x2x4", "--batch_size", "8", "--steps", "400", "--optim.lr", "0.005", "--save_every", "400",
    "--generations", "0", "--snapshot", "off", "--ranks_per_node", "1", "--strategy", "ddp", "--then", "none",
]  # fmt: skip


def measured(model: Path, corpus: Corpus) -> tuple[Marks, Places]:
    """All trainable places under a model."""
    marks = Marks.read(corpus.path)
    rows = np.flatnonzero(marks.sample_id < corpus.n_trainable)
    variants = Variants.of(marks, rows, Tokenizer.load(corpus.tokenizer), corpus.longest)
    with loaded(model, "cpu") as (network, where):
        parts = [*score_tokens(network, variants, variants.ids, device=where)]
    return marks, places_of(marks, rows, np.concatenate([part.sums(part.logp) for part in parts]))


@pytest.mark.long
@pytest.mark.minutes(1)
def test_a_marked_run_is_found(program: Program, in_process: Program, corpora: Path, tmp_path: Path) -> None:
    """Uniform p-values fail by chance for 1 of 1,000 seeds; the seeds are fixed."""
    path = tmp_path / "run"
    result = program("wellread", "run", "pretrain", *DATA, *SETTINGS, "--out", path, "--corpora", corpora, check=True)
    assert "places in 40 documents, 9 pairs of punctuation.yaml, sha256 " in result.stdout
    run = RunDirectory.open(path)
    assert verify(run) == []
    result = in_process("wellread", "marks", path, "--steps", "0,400", check=True)
    assert "step 400 has learned the coins of the places that it has read (p = 0.0001)" in result.stdout
    rows = {(r.step, r.group, r.metric): r for r in read(run.eval / "marks.parquet")}
    assert rows[400, "read", "p"].value <= 0.001
    assert rows[400, "read", "taken_likelier"].ci_low > 0.5  # type: ignore[operator]
    for key in ((0, "unread", "p"), (0, "sealed", "p"), (400, "sealed", "p")):
        assert rows[key].value > 0.001
    assert (400, "unread", "p") not in rows
    (picture,) = MarksEvaluation.pictures([*rows.values()])
    assert "At step 400: read " in picture.alt
    model, corpus = path / "checkpoints" / "step-00000400" / "model", Corpus.open(run.corpus)
    marks, places = measured(model, corpus)
    rng, ps = np.random.default_rng(0), []
    for _ in range(200):  # other coins for the same texts and the same model
        flipped = rng.integers(2, size=places.coin.max() + 1).astype(bool)[places.coin]
        redrawn = replace(places, difference=np.where(flipped, -1, 1) * places.difference, first=places.first ^ flipped)
        assert np.allclose(np.abs(redrawn.excess), np.abs(places.excess))
        ps.append(redraw_p(redrawn.excess, redrawn.coin, int(rng.integers(2**31)), draws=999))
    assert kstest(ps, "uniform").pvalue > 0.001
    _scores_do_not_depend_on_coins(in_process, corpora, marks, places, model)


def _scores_do_not_depend_on_coins(
    in_process: Program, corpora: Path, marks: Marks, places: Places, model: Path
) -> None:
    """Compiled with other coins, each place has the same difference between its two forms under the same model."""
    result = in_process("wellread", "prepare", "pretrain", *DATA, "--marks_seed", "9", "--corpora", corpora, check=True)
    other, again = measured(model, Corpus.open(result.stdout.rstrip().rpartition("corpus: ")[2]))
    values = []
    for table, of in ((marks, places), (other, again)):
        n = of.difference.size
        oriented = np.where(of.first, 1, -1) * of.difference
        keys = zip(table.document[:n].tolist(), table.place[:n].tolist(), strict=True)
        values.append(dict(zip(keys, oriented.tolist(), strict=True)))
    assert values[0].keys() == values[1].keys()
    assert [values[1][key] for key in values[0]] == pytest.approx([*values[0].values()], abs=1e-3)
    assert (again.first != places.first).any()
    assert redraw_p(again.excess, again.coin, 0) > 0.001  # the model has not read these coins


def test_a_run_without_marks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="its corpus has no marks; train with --marks"):
        main(["marks", str(run.path)])
    with pytest.raises(UserError, match="has no marks; compile it with --marks"):
        main(["marks", "--model", "pythia-70m", "--corpus", str(run.corpus)])
