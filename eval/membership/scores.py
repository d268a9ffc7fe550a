"""Table of membership scores: each is a function of token columns. A higher score means "more likely a member".

To add one, write its function and list it in `SCORES`; what it `needs` is a field of `Inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from eval.separation import Floats, Ints
from wellread.errors import UserError

if TYPE_CHECKING:
    from eval.membership.gradients import Norms
    from wellread.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What scores are computed from: the same samples, in the same order."""

    tokens: Tokens
    zlib: Ints | None = None
    """(samples,), bytes of the scored text, UTF-8, compressed by zlib."""
    lowercase: Tokens | None = None
    """The samples in lower case."""
    reference: Tokens | None = None
    """The samples under the reference model."""
    prefixed: Tokens | None = None
    """The samples after a prefix that the model has not read."""
    gradients: Norms | None = None
    """Norms of the gradients of the samples."""


Values = Callable[[Inputs, float], Floats]


@dataclass(frozen=True)
class Score:
    """A score: its values for samples, (samples,), NaN where it is not defined."""

    values: Values
    """Function of the inputs and of k."""
    needs: str = ""
    """Field of `Inputs` that it needs in addition to the token columns."""
    takes_k: bool = False
    """Whether it is computed for each k of `--k`."""
    on_request: bool = False
    """Whether it is computed only if `--scores` names it."""
    infinite: bool = False
    """Whether it can be infinite; an infinite value of another score is of a model that has diverged."""


def loss(inputs: Inputs, k: float = 1) -> Floats:
    """Mean log-probability (Yeom et al. 2018)."""
    return inputs.tokens.means(inputs.tokens.logp)


def zlib(inputs: Inputs, k: float = 1) -> Floats:
    """Mean log-probability per compressed byte (Carlini et al. 2021)."""
    assert inputs.zlib is not None
    return np.asarray(loss(inputs) / inputs.zlib)


def lowercase(inputs: Inputs, k: float = 1) -> Floats:
    """Loss of the text in lower case, divided by that of the text (Carlini et al. 2021)."""
    assert inputs.lowercase
    lower = inputs.lowercase.means(inputs.lowercase.logp)
    return _ratio(lower, loss(inputs))


def min_k(inputs: Inputs, k: float) -> Floats:
    """Mean of the lowest log-probabilities (Shi et al. 2024)."""
    return mean_of_lowest(inputs.tokens, inputs.tokens.logp, k)


def min_k_plus_plus(inputs: Inputs, k: float) -> Floats:
    """Mean of the lowest log-probabilities, standardized by mean and deviation under p (Zhang et al. 2025)."""
    tokens = inputs.tokens
    distance = tokens.logp.astype(np.float64) - tokens.mu
    standardized = np.zeros(distance.size)
    with np.errstate(divide="ignore"):  # no deviation and another value: minus infinity
        np.divide(distance, tokens.sigma, out=standardized, where=distance != 0)
    return mean_of_lowest(tokens, standardized, k)


def reference(inputs: Inputs, k: float = 1) -> Floats:
    """Mean log-probability minus that under the reference model (Carlini et al. 2021)."""
    assert inputs.reference
    return np.asarray(loss(inputs) - inputs.reference.means(inputs.reference.logp))


def ez(inputs: Inputs, k: float = 1) -> Floats:
    """Log-probability gained where the model errs, divided by that lost (Ilić et al. 2026).

    Over the tokens that are not the most likely ones. Infinite where nothing was lost; NaN without such a token.
    """
    assert inputs.reference
    tokens, errs = inputs.tokens, inputs.tokens.rank != 0
    shift = np.where(errs, tokens.logp.astype(np.float64) - inputs.reference.logp, 0.0)
    gained, lost = tokens.sums(np.maximum(shift, 0)), -tokens.sums(np.minimum(shift, 0))
    ratio = np.full(lost.size, np.inf)
    np.divide(gained, lost, out=ratio, where=lost != 0)
    ratio[np.isnan(gained) | np.isnan(lost) | (tokens.sums(errs) == 0)] = np.nan
    return ratio


def recall(inputs: Inputs, k: float = 1) -> Floats:
    """Mean log-probability after a prefix that was not read, divided by that without it (ReCaLL, Xie et al. 2024)."""
    assert inputs.prefixed
    return _ratio(inputs.prefixed.means(inputs.prefixed.logp), loss(inputs))


def gradnorm(inputs: Inputs, k: float = 1) -> Floats:
    """Minus the norm of the gradient of the mean loss, over all parameters together (Wang et al. 2024)."""
    assert inputs.gradients
    return -inputs.gradients.norm


def mean_of_lowest(tokens: Tokens, values: Floats, k: float) -> Floats:
    """Mean of the lowest max(1, int(k m)) of the m values of each sample; (samples,), NaN where m is 0.

    Parameters
    ----------
    values : (tokens,)
    """
    sizes = tokens.n_targets
    counts = np.minimum(np.maximum(1, (k * sizes + 1e-9).astype(np.int64)), sizes)  # 0.3 * 10 is below 3
    owner = np.repeat(np.arange(sizes.size), sizes)
    place = np.arange(owner.size) - tokens.bounds[:-1][owner]
    ordered = values[np.lexsort((values, owner))].astype(np.float64)
    totals = tokens.sums(np.where(place < counts[owner], ordered, 0.0))
    diverged = np.isnan(tokens.sums(values))  # NaN sorts last
    return np.asarray(np.where((counts > 0) & ~diverged, totals / np.maximum(1, counts), np.nan))


def _ratio(above: Floats, below: Floats) -> Floats:
    """Quotient; NaN where the divisor is 0: a text that the model predicts with certainty."""
    return np.asarray(np.divide(above, below, out=np.full(below.size, np.nan), where=below != 0))


SCORES: dict[str, Score] = {
    "loss": Score(loss),
    "zlib": Score(zlib, needs="zlib"),
    "lowercase": Score(lowercase, needs="lowercase"),
    "min_k": Score(min_k, takes_k=True),
    "min_k++": Score(min_k_plus_plus, takes_k=True),
    "reference": Score(reference, needs="reference"),
    "ez": Score(ez, needs="reference", infinite=True),
    "recall": Score(recall, needs="prefixed", on_request=True),
    "gradnorm": Score(gradnorm, needs="gradients", on_request=True),
}


@dataclass(frozen=True)
class Column:
    """A score with its k, as in the name of a task: `min_k_0.2`."""

    name: str
    score: Score
    k: float = 1

    def values(self, inputs: Inputs) -> Floats:
        """Values for the samples, (samples,); NaN where the score is not defined."""
        values = self.score.values(inputs, self.k)
        return values if self.score.infinite else np.where(np.isfinite(values), values, np.nan)


def columns(names: Sequence[str], ks: Sequence[float]) -> list[Column]:
    """The scores with these names, those with a k for each k.

    Raises
    ------
    UserError
        When a name is not in the table.
    """
    for name in names:
        if name not in SCORES:
            raise UserError(f"--scores {name}: not a score; choose from {', '.join(SCORES)}")
    chosen_scores = [(name, SCORES[name]) for name in dict.fromkeys(names)]
    return [
        Column(f"{name}_{k:g}" if score.takes_k else name, score, k)
        for name, score in chosen_scores
        for k in (ks if score.takes_k else [1.0])
    ]


def select_scores(names: Sequence[str], ks: Sequence[float], *, has_reference: bool, add: str) -> list[Column]:
    """The scores with these names, by default all that can be computed and are not only on request.

    Those with a k are there once for each k.

    Parameters
    ----------
    add
        The flag that adds a reference model, for the error.

    Raises
    ------
    UserError
        When a name is not in the table, or its score needs a reference model and there is none.
    """
    usual = {name: score for name, score in SCORES.items() if not score.on_request}
    every = [name for name, score in usual.items() if has_reference or score.needs != "reference"]
    scores = columns(names or every, ks)
    if not has_reference and (needing := [each.name for each in scores if each.score.needs == "reference"]):
        raise UserError(f"--scores {needing[0]}: needs a reference model; add {add}")
    return scores


def needs(scores: Sequence[Column]) -> list[str]:
    """Fields of `Inputs` that these scores need, in their order."""
    return [field.name for field in fields(Inputs) if field.name in {column.score.needs for column in scores}]


def passes(scores: Sequence[Column]) -> int:
    """How often each sample is scored by a model, for these scores."""
    return 1 + sum(need != "zlib" for need in needs(scores))
