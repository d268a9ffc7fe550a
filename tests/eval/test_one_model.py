"""One small model with canaries and marks: what was read is found and extracted, and generation agrees with ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from support.programs import Program

from eval.groups import Groups
from eval.marks.evaluation import MarksEvaluation
from eval.marks.statistics import Places, redraw_p
from eval.marks.variants import Variants, places_of
from eval.memorization.extraction import Suffixes
from eval.memorization.generated import Work, generate
from eval.randomness import Randomness
from wellread.config import CONFIGS
from wellread.corpus.canaries import Texts
from wellread.corpus.marks import Marks
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.files import read_json
from wellread.models.load import loaded
from wellread.models.loss import next_logits
from wellread.models.score import score_tokens
from wellread.order.permutation import Order
from wellread.order.store import open_order
from wellread.record.verify import verify
from wellread.results import Result, read
from wellread.run import RunDirectory
from wellread.tokens import Tokens

STEPS, BATCH, PER_DOSE, CONTROLS = 400, 64, 32, 199
DOSES = (0, 16, 64)
EXTRACTIBLE = 20
"""Canaries of a dose on which ranks and generation are compared."""
DATA = ["--data", "stories:40", "--vocab", "512", "--seq_len", "16", "--marks", CONFIGS / "marks" / "punctuation.yaml"]
SETTINGS = [
    "--size", "96x2x4", "--batch_size", BATCH, "--steps", STEPS, "--optim.lr", "0.005", "--save_every", STEPS,
    "--generations", "0", "--snapshot", "off", "--ranks_per_node", "1", "--strategy", "ddp", "--then", "none",
    "--canaries", PER_DOSE, "--canary_repeats", ",".join(map(str, DOSES)),
    "--canary_controls", CONTROLS, "--canary_at", "late", "--canary_tokens", "8",
]  # fmt: skip
DRAWS = 2000


@pytest.mark.long
@pytest.mark.minutes(2)
def test_what_was_read_is_found_and_extracted(
    program: Program, in_process: Program, corpora: Path, tmp_path: Path
) -> None:
    """Seeds are fixed.

    By chance each of 13 p-values is below .001 for 1 of 1,000 seeds, and one of 4 frequencies is more than 4 standard
    errors from q for 3 of 10,000.
    """
    path = tmp_path / "run"
    result = program("wellread", "run", "pretrain", *DATA, *SETTINGS, "--out", path, "--corpora", corpora, check=True)
    assert "canaries: 2,560 readings, 10.00% of all, in place of other samples" in result.stdout
    assert "places in 40 documents, 9 pairs of punctuation.yaml, sha256 " in result.stdout
    run = RunDirectory.open(path)
    assert verify(run) == []
    _others_stay_random(run)
    lines = [
        *_canaries(in_process, run),
        *_ranks_agree_with_generation(run),
        *_samples_are_extracted(in_process, run),
    ]
    _marks(in_process, run, corpora)
    print("\n".join(lines))


def _results(run: RunDirectory, name: str) -> dict[tuple[int, str, str, str], Result]:
    return {(r.step, r.task, r.group, r.metric): r for r in read(run.eval / f"{name}.parquet")}


def _others_stay_random(run: RunDirectory) -> None:
    """The order is that of the same run without canaries, and displaced samples are in no comparison of times."""
    corpus, order = Corpus.open(run.corpus), open_order(run)
    base = Order(kind="shuffle", seed=0, n=corpus.n_ordinary, batch_size=BATCH)
    actual, plain = order.batches(0, STEPS), base.batches(0, STEPS)
    changed = actual != plain
    assert changed.sum() == PER_DOSE * sum(DOSES)
    assert (actual[changed] >= corpus.n_ordinary).all()
    assert np.argwhere(changed)[:, 0].min() >= STEPS - 134  # late: the last third
    random = Randomness.of(run)
    assert random.why_not(needs_one_draw=True) == ""
    inserted = {each["sample_id"] for each in read_json(run.order_notes)["inserted"]}
    assert {*random.selected.tolist()} == inserted | {*plain[changed].tolist()}
    groups = Groups.of(run, 10_000, 0).at(0)  # later, each of the 40 documents has been read
    assert not {*range(corpus.n_ordinary, corpus.n_trainable)} & {*np.concatenate(list(groups.values())).tolist()}
    assert groups["unread"].size
    assert not {*plain[changed].tolist()} & {*groups["unread"].tolist()}


def _extracted_dose(of: dict[tuple[int, str, str, str], Result]) -> int:
    """The smallest dose at which at least `EXTRACTIBLE` canaries are extractible."""
    counts = {n: of[STEPS, f"canaries/repeats_{n}", "all", "extractible"].value * PER_DOSE for n in DOSES}
    doses = [n for n, count in counts.items() if round(count) >= EXTRACTIBLE]
    assert doses, f"extractible of {PER_DOSE}, by dose: {counts}"
    return min(doses)


def _canaries(program: Program, run: RunDirectory) -> Iterator[str]:
    """Doses that were read are found; where nothing was read, p-values are uniform."""
    program("wellread", "canaries", run.path, "--steps", f"0,{STEPS}", check=True)
    of = _results(run, "canaries")
    for repeats in DOSES:
        share, extractible = (
            of[STEPS, f"canaries/repeats_{repeats}", "all", name] for name in ("found", "extractible")
        )
        yield f"{repeats} readings: {share.value:.0%} are found, {extractible.value * PER_DOSE:.0f} are extractible"
    assert of[STEPS, "canaries/repeats_16", "all", "p"].value <= 0.01
    dose = _extracted_dose(of)
    yield f"smallest dose of which at least {EXTRACTIBLE} canaries are extractible: {dose} readings"
    assert dose > 0  # a text that was not read is not extractible
    for step, repeats in ((0, 64), (0, 16), (0, 0), (STEPS, 0)):
        task = f"canaries/repeats_{repeats}"
        p = [
            r.value for key, r in of.items() if (key[0], key[1], key[3]) == (step, task, "p") and key[2][:6] == "sample"
        ]
        assert len(p) == PER_DOSE
        assert kstest(p, "uniform").pvalue > 0.001
        assert of[step, task, "all", "p"].value > 0.001


def _model_of(run: RunDirectory) -> Path:
    return run.checkpoints / f"step-{STEPS:08d}" / "model"


def _ranks_agree_with_generation(run: RunDirectory) -> Iterator[str]:
    """Greedy generation returns the second half of all canaries with ranks 0, and of no other text.

    At least 20 of these canaries are of the smallest dose that has so many. And the second half is drawn as often as
    its probability q says, of four texts with q between .05 and .5.
    """
    texts = Texts.read(Corpus.open(run.corpus).path)
    with loaded(_model_of(run), "cpu") as (model, _), torch.inference_mode():
        ids = np.arange(len(texts.sequences))
        columns = Tokens.joined(list(score_tokens(model, texts, ids, device="cpu")))
        of = Suffixes.of(columns.at(ids), 3, 4)
        positive = ids[of.extractible == 1]
        negative = np.setdiff1d(ids, positive)[-100:]
        dose = _extracted_dose(_results(run, "canaries"))
        assert (texts.repeats[positive] == dose).sum() >= EXTRACTIBLE
        assert generate(model, Work(texts, 3, 4, "cpu"), positive, "cpu") == [1.0] * positive.size
        assert max(generate(model, Work(texts, 3, 4, "cpu"), negative, "cpu")) < 1
        generator = torch.Generator().manual_seed(0)
        between = ids[(of.log_q > np.log(0.05)) & (of.log_q < np.log(0.5))][:4]
        assert between.size == 4
        for i in between.tolist():
            tokens, q = torch.from_numpy(texts.tokens(i).astype(np.int64)), float(np.exp(of.log_q[i]))
            frequency = float((_draws(model, tokens[:4], 4, generator) == tokens[4:]).all(1).double().mean())
            yield f"text {i}: q {q:.4f}, drawn in {frequency:.4f} of {DRAWS:,}"
            assert abs(frequency - q) < 4 * (q * (1 - q) / DRAWS) ** 0.5


def _draws(model: Any, prefix: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Continuations of a prefix, drawn at temperature 1 from the 40 most likely tokens; (draws, size)."""
    ids = prefix.repeat(DRAWS, 1)
    for _ in range(size):
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[:, -1] = True
        top = next_logits(model, ids, last).float().topk(40)
        picks = torch.multinomial(top.values.softmax(1), 1, generator=generator)
        ids = torch.cat([ids, top.indices.gather(1, picks)], 1)
    return ids[:, prefix.numel() :]


def _samples_are_extracted(program: Program, run: RunDirectory) -> Iterator[str]:
    """Samples that were read are extracted, sealed ones of the same documents' kind are not."""
    flags = ["--steps", STEPS, "--prefix", "8", "--suffix", "7", "--generate"]
    program("wellread", "memorization", run.path, *flags, check=True)
    of = _results(run, "memorization")
    read_ones, sealed = (of[STEPS, "memorization/8_7", group, "extractible"] for group in ("read", "sealed"))
    yield f"extractible: read {read_ones.value:.1%} of {read_ones.n}, sealed {sealed.value:.1%} of {sealed.n}"
    assert read_ones.ci_low > 0.5  # type: ignore[operator]
    assert sealed.value < 0.2  # its interval is wide: the 62 samples are of few documents
    for group in ("read", "sealed"):
        assert of[STEPS, "memorization/8_7", group, "generated_differs"].value == 0


# --- marks -----------------------------------------------------------------------------------------------------------


def _measured(model: Path, corpus: Corpus) -> tuple[Marks, Places]:
    """All trainable places under a model."""
    marks = Marks.read(corpus.path)
    rows = np.flatnonzero(marks.sample_id < corpus.n_trainable)
    variants = Variants.of(marks, rows, Tokenizer.load(corpus.tokenizer), corpus.longest)
    with loaded(model, "cpu") as (network, where):
        parts = [*score_tokens(network, variants, variants.ids, device=where)]
    return marks, places_of(marks, rows, np.concatenate([part.sums(part.logp) for part in parts]))


def _marks(program: Program, run: RunDirectory, corpora: Path) -> None:
    """The coins are found, and other coins give uniform p-values."""
    result = program("wellread", "marks", run.path, "--steps", f"0,{STEPS}", check=True)
    assert f"step {STEPS} has learned the coins of the places that it has read (p = 0.00" in result.stdout
    rows = {(r.step, r.group, r.metric): r for r in read(run.eval / "marks.parquet")}
    assert rows[STEPS, "read", "p"].value <= 0.001
    assert rows[STEPS, "read", "taken_likelier"].ci_low > 0.5  # type: ignore[operator]
    for key in ((0, "unread", "p"), (0, "sealed", "p"), (STEPS, "sealed", "p")):
        assert rows[key].value > 0.001
    assert (STEPS, "unread", "p") not in rows
    (picture,) = MarksEvaluation.pictures([*rows.values()])
    assert f"At step {STEPS}: read " in picture.alt
    marks, places = _measured(_model_of(run), Corpus.open(run.corpus))
    rng, ps = np.random.default_rng(0), []
    for _ in range(200):  # other coins for the same texts and the same model
        flipped = rng.integers(2, size=places.coin.max() + 1).astype(bool)[places.coin]
        redrawn = replace(places, difference=np.where(flipped, -1, 1) * places.difference, first=places.first ^ flipped)
        assert np.allclose(np.abs(redrawn.excess), np.abs(places.excess))
        ps.append(redraw_p(redrawn.excess, redrawn.coin, int(rng.integers(2**31)), draws=999))
    assert kstest(ps, "uniform").pvalue > 0.001
    _scores_do_not_depend_on_coins(program, corpora, marks, places, _model_of(run))


def _scores_do_not_depend_on_coins(program: Program, corpora: Path, marks: Marks, places: Places, model: Path) -> None:
    """Compiled with other coins, each place has the same difference between its two forms under the same model."""
    result = program("wellread", "prepare", "pretrain", *DATA, "--marks_seed", "9", "--corpora", corpora, check=True)
    other, again = _measured(model, Corpus.open(result.stdout.rstrip().rpartition("corpus: ")[2]))
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
