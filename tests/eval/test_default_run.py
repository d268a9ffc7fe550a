"""The default run, with sealed losses at every step: what the documents say of it holds. Seeds are fixed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.decoded import compare_means
from support.made_once import made_once
from support.programs import Program

from eval.forgetting.curve import Curve, fit
from eval.forgetting.difference import Cohort, Sealed, recorded_difference
from eval.forgetting.evaluation import Forgetting
from eval.groups import READ, SEALED
from eval.kept import kept_scores, token_file
from eval.separation import Ints
from wellread.checkpoint import list_checkpoints
from wellread.record.verify import verify
from wellread.results import Result, read
from wellread.run import RunDirectory

pytestmark = pytest.mark.long
MIDDLE = 80
SETTINGS = ["--eval_every", 1, "--eval_samples", 16, "--save_every", 40, "--keep_states", 1, "--generations", 0]


@pytest.fixture(scope="module")
def default_run(program: Program, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The default run, evaluated in its middle and at its end; a checkpoint every 40 steps. Read it, never write."""

    def train(folder: Path) -> None:
        out = folder / "run"
        program("wellread", "run", "finetune", *SETTINGS, "--out", out, "--corpora", corpora, check=True)
        steps = ["--steps", f"{MIDDLE},last"]
        program("wellread", "membership", out, *steps, "--scores", "loss", check=True)
        program("wellread", "forgetting", out, *steps, check=True)

    return RunDirectory.open(made_once(tmp_path_factory, "default", train) / "run")


def results_of(run: RunDirectory, name: str) -> dict[tuple[int, str, str, str], Result]:
    return {(each.step, each.task, each.group, each.metric): each for each in read(run.eval / f"{name}.parquet")}


@pytest.mark.minutes(4)
def test_its_record_is_verified(default_run: RunDirectory) -> None:
    assert verify(default_run) == []


def test_read_samples_are_recognized_and_shuffled_labels_are_not(default_run: RunDirectory) -> None:
    of = results_of(default_run, "membership")
    assert of[259, "membership/loss", READ, "auc"].value > 0.9
    for step in (MIDDLE, 259):
        shuffled = of[step, "membership/loss", "shuffled", "auc"]
        assert (shuffled.ci_low or 1) < 0.5 < (shuffled.ci_high or 0)
        for gate in ("gate/words", "gate/shape"):
            assert of[step, gate, READ, "p_holm"].value > 0.01


def test_what_is_left_of_readings(default_run: RunDirectory) -> None:
    """Positive in every group by age; in the middle, what was read lately is better known than what was read long ago.

    At the end that need not be so: old readings had a higher learning rate.
    """
    of = results_of(default_run, "forgetting")
    difference = {(step, group): each for (step, _, group, metric), each in of.items() if metric == "difference"}
    ages = {key: each for key, each in difference.items() if key[1].startswith("age:") and each.n >= 50}
    assert {group for step, group in ages if step == MIDDLE} == {"age:0-10", "age:10-20", "age:20-40", "age:40-80"}
    for key, each in ages.items():
        assert each.value > 0, key
    assert ages[MIDDLE, "age:10-20"].value > ages[MIDDLE, "age:40-80"].value
    assert (difference[259, READ].ci_low or 0) > 0


def test_its_intervals_are_narrower_than_those_of_the_plain_difference(default_run: RunDirectory) -> None:
    """Half as wide is reached where a model knows the level of a sample when it reads it (docs/evaluation.md)."""
    of = results_of(default_run, "forgetting")

    def width(step: int, group: str, metric: str) -> float:
        each = of[step, "forgetting", group, metric]
        return (each.ci_high or 0) - (each.ci_low or 0)

    assert width(MIDDLE, READ, "difference") < width(MIDDLE, READ, "plain_difference")


def test_one_point_in_ten_gives_the_same_effect(default_run: RunDirectory) -> None:
    """The 99% interval of the paired difference contains 0; drawn again are sealed documents, with all their values."""
    evaluation = Forgetting(default_run, steps=[259])
    curve, ids = evaluation.curve, evaluation.groups.at(259)
    scores = kept_scores(
        token_file(default_run, list_checkpoints(default_run.checkpoints)[-1]),
        evaluation.groups.corpus,
        evaluation.groups.all(259),
    )
    readings, documents = evaluation.readings, evaluation.groups.documents
    cohort = Cohort(
        scores.at(ids[READ]).mean, readings.losses[ids[READ]], readings.batches[ids[READ]], documents[ids[READ]]
    )
    sealed = Sealed(scores.at(ids[SEALED]).mean, documents[ids[SEALED]])

    def effect(of: Curve, sides: Sealed) -> float:
        used = np.isin(sides.documents, of.ids)
        return recorded_difference(cohort, Sealed(sides.scores[used], sides.documents[used]), of)["value"]

    def paired(draw: Ints) -> float:
        rows = [np.flatnonzero(curve.documents == document) for document in draw.tolist()]
        at = np.concatenate(rows)
        copies = np.repeat(np.arange(len(draw)), [len(each) for each in rows])  # a document drawn twice is two
        places = [np.flatnonzero(sealed.documents == document) for document in draw.tolist()]
        copies_of_places = np.repeat(np.arange(len(draw)), [len(each) for each in places])
        sides = Sealed(sealed.scores[np.concatenate(places)], copies_of_places)
        few = curve.steps[at] % 10 == 0
        curves = [fit(curve.steps[at[rows]], copies[rows], curve.losses[at[rows]]) for rows in (few, ~few | few)]
        return effect(curves[0], sides) - effect(curves[1], sides)

    rng = np.random.default_rng(0)
    draws = [paired(rng.choice(curve.ids, len(curve.ids))) for _ in range(200)]
    value = paired(curve.ids)
    half = 2.576 * float(np.std(draws))
    assert 0 < half < 0.1
    assert abs(value) < half


def test_means_of_what_it_read_are_those_of_the_decoded_text_of_200_batches(
    default_run: RunDirectory, tmp_path: Path
) -> None:
    shutil.copytree(default_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    assert compare_means(RunDirectory.open(tmp_path / "run"), [50, 200]) == 200 * 16
