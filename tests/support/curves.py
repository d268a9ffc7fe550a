"""Synthetic curves of a metric: 20 checkpoints, known shapes, stated noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eval.saturation.curve import Curve
from eval.separation import Floats

STEPS = np.arange(50, 1001, 50)
RATE = np.log(20) / 250  # 5% of the change is left after 250 steps, at step 300

SHAPES: dict[str, Callable[[Floats], Floats]] = {
    "exponential": lambda t: 3 * np.exp(-RATE * (t - 50)),
    "flat": lambda t: 0 * t,
    "power law": lambda t: 3 * (t / 50) ** -0.3 / (1 - 20**-0.3),
    "rise and fall": lambda t: 3 * np.exp(-((np.log(t / 300) / 0.8) ** 2)),
    "logistic": lambda t: 3 / (1 + (t / 250) ** -2.0),
}
"""Shapes that change by 3 over the run, over steps; `exponential` has saturated at step 300 with a margin of 5%."""


def simulated(shape: str, *, sd: float, n: int = 256, seed: int = 0) -> Curve:
    """Items with normal means of SD 1, and independent normal noise of `sd` at each checkpoint."""
    rng = np.random.default_rng([seed, n])
    items, noise = rng.normal(0, 1, (n, 1)), rng.normal(0, sd, (n, STEPS.size))
    values = items - items.mean() + SHAPES[shape](STEPS.astype(float)) + noise
    return Curve(metric=shape, steps=STEPS, values=values, documents=np.arange(n))


def of_sizes(fall: float, *, sd: float, n: int = 256, seed: int = 0) -> Curve:
    """A ratio, 2.8 per unit of size at the first checkpoint, that falls in a straight line; most items are small.

    Items differ by .3 (SD) per unit of size, and have independent normal noise of `sd` at each checkpoint.
    """
    rng = np.random.default_rng([seed, n])
    sizes = rng.lognormal(0, 0.7, n)
    per_unit = 2.8 + rng.normal(0, 0.3, (n, 1)) + rng.normal(0, sd, (n, STEPS.size))
    values = (per_unit - fall * np.linspace(0, 1, STEPS.size)) * (sizes / sizes.mean())[:, None]
    return Curve(metric="ratio", steps=STEPS, values=values, documents=np.arange(n), item_sizes=sizes)
