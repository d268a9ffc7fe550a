"""Figures: their specifications, their pictures, and text that must stay text."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from eval import between
from eval.saturation.figures import batch_figures
from eval.saturation.figures import figures_of as saturation_figures
from eval.saturation.inputs import InputMeans
from eval.saturation.perplexity import NAME
from eval.saturation.summary import summary
from wellread.plots.batches import batch_curve
from wellread.plots.canaries import found_by_step
from wellread.plots.curves import Point, step_curves
from wellread.plots.figure import Figure
from wellread.plots.forgetting import forgetting_by_step
from wellread.plots.lengths import length_histogram
from wellread.plots.loss import MAX_POINTS, compare_losses, loss_curve, running_mean
from wellread.plots.marks import excess_by_step
from wellread.plots.membership import auc_by_step, roc, rocs, score_histogram
from wellread.plots.memorization import poisson_qq
from wellread.plots.style import CATEGORIES, DARK, DASHES
from wellread.results import Result

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = ("<script>alert(1)</script>", "</script>", "{{7*7}}", "<img src=x onerror=alert(1)>", "__proto__", "a'\"&b")


ABOUT: dict[str, Any] = {"run": "r", "model": "m", "task": "t", "tokens": 1, "n": 5}


def aucs(step: int, **values: float) -> list[Result]:
    about = ABOUT | {"step": step, "metric": "auc"}
    return [Result(**about, group=group, value=v, ci_low=v - 0.1, ci_high=v + 0.1) for group, v in values.items()]


def measured(metric: str, group: str, *means: float) -> list[Result]:
    """A metric at steps 0, 50, 100, …"""
    return [
        Result(**ABOUT, metric=metric, group=group, step=50 * i, value=v, ci_low=v - 0.1, ci_high=v + 0.1)
        for i, v in enumerate(means)
    ]


def values(spec: dict[str, Any], layer: int) -> list[dict[str, Any]]:
    """Rows of a layer."""
    data = spec.get("data") or spec["layer"][layer]["data"]
    return list(spec["datasets"][data["name"]])


WRITTEN = [
    result
    for group, means in (("greedy", (1.0, 2.0, 2.5)), ("sampled", (2.0, 3.0, 3.1)), ("reference", (4.0, 4.0, 4.0)))
    for result in measured("flesch_kincaid", group, *means)
]
CURVE = [*aucs(0, unread=0.5, shuffled=0.5), *aucs(8, read=0.6, unread=0.5), *aucs(64, read=0.8)]
RUNS = (("seed 0", 2.0), ("seed 1", 2.5))
SEEDS: list[between.Values] = [
    {"greedy/words": {0: 1.0, 50: 4.0}, "sampled/words": {0: 2.0, 50: 6.0}},
    {"greedy/words": {0: 3.0, 50: 8.0}, "sampled/words": {0: 2.0, 50: 5.0}},
]
READ = InputMeans(np.array([np.nan, 4.0, 2.0]), np.array([np.nan, 4.0, 3.0]))  # nothing was read until step 0
RATES = np.array([0.0, 0.2, 1]), np.array([0.0, 0.9, 1])
FIGURES: dict[str, Callable[[], Figure]] = {
    "loss": lambda: loss_curve(np.arange(6), np.linspace(5, 2, 6), holdout=[(0, 5.0)], reference=("other", 3.0)),
    "one-batch": lambda: loss_curve(np.arange(1), np.ones(1)),
    "auc": lambda: auc_by_step(CURVE),
    "auc-at-step-0": lambda: auc_by_step(CURVE[:1]),
    "roc": lambda: roc(*RATES, nonmembers=50),
    "roc-log": lambda: roc(*RATES, nonmembers=50, log=True),
    "scores": lambda: score_histogram({"read": np.array([-1.0, -2]), "sealed": np.ones(3)}),
    "lengths": lambda: length_histogram({"trainable": np.array([256, 256])}),
    "auc-suspect": lambda: auc_by_step(CURVE, suspect=True),
    "rocs": lambda: rocs({"a": RATES, "b": (RATES[0], RATES[0])}),
    "losses-of-runs": lambda: compare_losses({name: (np.arange(8), np.linspace(5, end, 8)) for name, end in RUNS}),
    "forgetting": lambda: forgetting_by_step(
        [*measured("difference", "read", 0, 0.4, 0.2), *measured("difference", "unread", 0, 0.0, 0.1)]
    ),
    "forgetting-without-record": lambda: forgetting_by_step(
        [*measured("difference", "read", 0, 0.4), *measured("plain_difference", "read", 0, 0.3)]
    ),
    "written": lambda: saturation_figures(summary(WRITTEN, {}))["output-flesch_kincaid"],
    "written-at-one-step": lambda: saturation_figures(summary(WRITTEN[:1], {}))["output-flesch_kincaid"],
    "what-was-read": lambda: saturation_figures(summary(WRITTEN, {"words": READ}))["read-words"],
    "perplexity-of-what-was-read": lambda: saturation_figures(summary(WRITTEN, {f"{NAME}m@step-0": READ}))[
        f"read-{NAME}m@step-0"
    ],
    "canaries": lambda: found_by_step(
        [
            Result(**ABOUT | {"task": f"canaries/repeats_{dose}"}, metric="found", group="all", step=step, value=share)
            for dose, shares in ((16, (0.1, 0.6)), (1, (0.0, 0.1)))
            for step, share in enumerate(shares)
        ],
        0.05,
    ),
    "marks": lambda: excess_by_step([*measured("excess", "read", 0, 1.0, 2.0), *measured("excess", "sealed", 0, 0.1)]),
    "poisson-qq": lambda: poisson_qq(np.array([0, 1, 1, 2, 4])),
    "batches": lambda: batch_figures({"words": np.array([5.0, 3, np.nan, 7, 6, 4, 9, 2])}, [0, 4, 8])["batch-words"],
    "between-runs": lambda: between.figures_of(between.bands(SEEDS))["words"],
}


@pytest.mark.parametrize("name", FIGURES)
def test_specifications_are_golden(name: str, golden: Callable[[str, str], None]) -> None:
    figure = FIGURES[name]()
    figure.chart.to_dict(validate=True)
    golden(f"figures/{name}.json", json.dumps(figure.spec(), indent=1) + "\n")


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_are_valid_and_reproducible(name: str) -> None:
    png, svg = FIGURES[name]().png(), FIGURES[name]().svg()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(png[16:20], "big") == 1120
    assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
    assert svg == FIGURES[name]().svg()


def test_another_process_makes_the_same_bytes(root: Path) -> None:
    code = (
        "import hashlib; from wellread.plots.curves import Point, step_curves;"
        "figure = step_curves({'a': [Point(0, 1.0), Point(9, 2.0)]}, 'x');"
        "print(hashlib.sha256(figure.svg() + figure.png()).hexdigest())"
    )
    figure = step_curves({"a": [Point(0, 1.0), Point(9, 2.0)]}, "x")
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.strip() == hashlib.sha256(figure.svg() + figure.png()).hexdigest()


def test_a_long_run_is_a_small_figure() -> None:
    figure = loss_curve(np.arange(90_000), np.linspace(5, 2, 90_000))
    assert len(values(figure.spec(), 0)) == MAX_POINTS
    assert len(figure.svg()) < 100_000


def test_the_batches_of_a_long_run_are_evenly_spaced_on_the_axis() -> None:
    """Each point is a batch as it is; the mean is that of all batches, also of those that are not shown."""
    numbers = np.random.default_rng(0).normal(5, 1, 90_000)
    numbers[7] = np.nan
    figure = batch_curve(numbers, [0, 100, 90_000], "x")
    points, means = values(figure.spec(), 0), values(figure.spec(), 1)
    steps = [row["step"] for row in points]
    assert [steps[0], steps[-1], len(means)] == [0, 89_999, len(points)]
    assert MAX_POINTS * 0.8 < len(points) <= MAX_POINTS
    assert 7 not in steps
    assert all(row["value"] == pytest.approx(numbers[row["step"]], rel=1e-5) for row in points)
    gaps = np.diff(np.log1p(np.array(steps) / 100))
    assert gaps[500:].max() / gaps[500:].min() < 1.5
    place = np.searchsorted(steps, 40_000)
    around = numbers[steps[place] - 1800 : steps[place] + 1801]  # 3,601 batches
    assert means[place]["series"] == "mean of 3599 batches"
    assert means[place]["value"] == pytest.approx(around.mean(), abs=0.01)
    assert len(figure.png()) < 200_000


def test_batches_by_hand() -> None:
    spec = batch_curve(np.array([1.0, np.nan, 3.0, 8.0]), [2, 4], "x").spec()
    assert [(row["step"], row["value"]) for row in values(spec, 0)] == [(0, 1), (2, 3), (3, 8)]
    assert [row["value"] for row in values(spec, 1)] == [2, 4, 5.5]
    assert spec["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0, 4]


def test_running_mean_by_hand() -> None:
    assert running_mean(np.array([3.0, 0.0, 6.0, 3.0]), 3).tolist() == [1.5, 3.0, 3.0, 4.5]


def test_densities_by_hand() -> None:
    spec = length_histogram({"a": np.array([1, 1, 2]), "b": np.array([3])}).spec()
    points = [(row["value"], row["density"]) for row in values(spec, 0) if row["series"] == "a (3)"]
    assert points == [(0.5, 0), (1.5, 0.666667), (2.5, 0.333333), (3.5, 0), (3.5, 0)]


def test_bands_and_the_axis_of_steps() -> None:
    points = [Point(100, 2.0, 1.5, 2.5), Point(0, 1.0), Point(10, 1.5, 1.0, 2.0)]
    spec = step_curves({"a": points}, "x").spec()
    assert [(row["step"], row["low"], row["high"]) for row in values(spec, 0)] == [(10, 1, 2), (100, 1.5, 2.5)]
    assert [row["step"] for row in values(spec, 1)] == [0, 10, 100]
    x = spec["layer"][1]["encoding"]["x"]
    assert x["scale"] == {"type": "symlog", "constant": 10, "domain": [0, 100], "nice": False}
    assert x["axis"]["values"] == [0, 10, 100]


def test_an_interval_at_one_step_is_a_line() -> None:
    interval = step_curves({"a": [Point(5, 2.0, 1.5, 2.5)]}, "x").spec()["layer"][0]
    assert interval["mark"]["type"] == "rule"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="a number that is not finite"):
        step_curves({"a": [Point(0, value)]}, "x").spec()


def test_text_stays_text() -> None:
    svg = step_curves({name: [Point(0, i), Point(8, i + 1.0)] for i, name in enumerate(HOSTILE)}, HOSTILE[0]).svg()
    tree = ElementTree.fromstring(svg)
    texts = [element.text for element in tree.iter(f"{SVG}text")]
    assert set(HOSTILE) <= set(texts)
    assert {element.tag.removeprefix(SVG) for element in tree.iter()} <= {"svg", "g", "rect", "path", "line", "text"}
    for element in tree.iter():
        assert not any(name.startswith("on") or "href" in name for name in element.attrib)
        assert not any(part in element.get("id", "") + element.get("class", "") for part in ("script", "proto", "7*7"))
    assert len([path for path in tree.iter(f"{SVG}path") if path.get("aria-roledescription") == "line mark"]) == 6


def test_colors_and_dashes() -> None:
    assert len(CATEGORIES) == len(DASHES) == len({*CATEGORIES}) == len({str(dash) for dash in DASHES})
    assert len({DARK.get(color, color) for color in CATEGORIES}) == len(CATEGORIES)
