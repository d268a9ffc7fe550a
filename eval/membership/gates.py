"""Gates: can members and non-members be distinguished *without* the model?

A gate is a classifier that sees the texts of the samples, or their length, data set and category, but no score. If it
separates the groups, they differ in more than membership, and no score on them proves anything (Duan et al. 2024, Das
et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.separation import Floats, Ints, codes_of, permuted
from eval.statistics import TooFew, permutation_p

PERMUTATIONS = 999
"""Label permutations of one gate, at least."""
SUSPECT = 0.01
"""Ground truth is suspect when a gate's p-value, after Holm's correction, is below this."""
FOLDS = 5
FEATURES = 2**16
"""Number of hashed word 1- and 2-grams."""
FEWEST = 10
"""Documents that each side needs."""
TOKEN = r"\w+|[^\w\s]"

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Gate:
    """How well a classifier that never sees the model distinguishes members from non-members."""

    name: str
    """`words` or `shape`."""
    auc: float
    """AUC of its out-of-fold predictions."""
    p: float
    """One-sided p-value, by permutation of the labels among documents."""


def words(texts: Sequence[str]) -> Floats:
    """Gram matrix of texts, float64[n, n]: similarity of their hashed words and pairs of words.

    Counts are damped (1 + log), weighted by inverse document frequency, and each text has length 1. Case and
    punctuation are kept, because sources differ in them.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    hashed = HashingVectorizer(
        n_features=FEATURES, ngram_range=(1, 2), token_pattern=TOKEN, lowercase=False, norm=None, alternate_sign=False
    ).transform(texts)
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(hashed)
    return np.asarray((weighted @ weighted.T).toarray(), dtype=np.float64)


def shape(lengths: Ints, *labels: Sequence[object]) -> Floats:
    """Gram matrix of samples, float64[n, n]: similarity of length and labels (data set, category).

    Parameters
    ----------
    lengths
        Number of tokens, or of characters, of each sample, int64[n]: as log(1 + length) and as tenths of the samples,
        so a difference in the spread of lengths shows too.
    labels
        One label per sample, for each kind of label; None is a label too.
    """
    logs = np.log1p(lengths.astype(np.float64))
    spread = logs.std()
    columns = [(logs - logs.mean()) / spread] if spread > 0 else []
    tenths = np.searchsorted(np.quantile(logs, np.arange(1, 10) / 10), logs)
    for labeling in (tenths.tolist(), *labels):
        codes = {label: code for code, label in enumerate(dict.fromkeys(labeling))}
        columns.extend(np.eye(len(codes))[[codes[label] for label in labeling]].T)
    features = np.stack(columns, axis=1)
    return np.asarray(features @ features.T)


def gate(
    name: str,
    gram: Floats,
    is_member: Bools,
    documents: Ints,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Gate:
    """Ridge regression of membership on a Gram matrix, out-of-fold; its p-value from permuted labels.

    The bootstrap interval of a cross-validated AUC is too narrow, because the folds share data. Here the smoother from
    labels to out-of-fold predictions does not depend on the labels, is computed once, and predicts all permutations in
    one matrix product; so the p-value is exact for groups that were drawn by document.

    Parameters
    ----------
    gram
        Similarities of the samples, float64[n, n], from `words` or `shape`.
    is_member
        bool[n].
    documents
        Document of each sample, int64[n]; folds and permutations are over documents.

    Raises
    ------
    ValueError
        When a document is on both sides.
    TooFew
        When a side has fewer than `FEWEST` documents.
    """
    codes = codes_of(documents)
    labels = _document_labels(codes, is_member)
    rng = np.random.default_rng(seed)
    smoother = _smoother(gram, rng.permutation(labels.size)[codes] % FOLDS)
    observed = float(_aucs(smoother, labels[None, codes])[0])
    draws = [_aucs(smoother, batch[:, codes]) for batch in permuted(labels, permutations, rng)]
    return Gate(name, observed, permutation_p(observed, np.concatenate(draws)))


def permutations_for(tests: int) -> int:
    """Permutations per gate so that the smallest possible p-value is significant after Holm over `tests` gates."""
    return max(PERMUTATIONS, int(2 * tests / SUSPECT) - 1)


def _document_labels(codes: Ints, is_member: Bools) -> Bools:
    """Label of each document, bool[documents]."""
    members = np.bincount(codes, weights=is_member)
    if ((members > 0) & (members < np.bincount(codes))).any():
        raise ValueError("a document has members and non-members")
    labels = members > 0
    if min(labels.sum(), (~labels).sum()) < FEWEST:
        raise TooFew(f"a gate needs {FEWEST} documents of each side, not {labels.sum()} and {(~labels).sum()}")
    return np.asarray(labels)


def _smoother(gram: Floats, folds: Ints) -> Floats:
    """The matrix that maps centered labels to out-of-fold predictions, float64[n, n].

    With Q = (K + I)^-1, the residual of the samples S of a fold, predicted from all others, is (Q_SS)^-1 (Q y)_S
    (leave-one-out formula of ridge regression, for a block; Golub, Heath & Wahba 1979), so one inverse is enough for
    all folds. K is centered, which uses no label, and scaled to a mean diagonal of 1.
    """
    from scipy.linalg import cho_factor, cho_solve

    n = folds.size
    centered = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    scale = np.trace(centered) / n
    if scale > 0:
        centered = centered / scale
    inverse = cho_solve(cho_factor(centered + np.eye(n)), np.eye(n))
    smoother = np.zeros((n, n))
    for fold in range(FOLDS):
        inside = np.flatnonzero(folds == fold)
        smoother[inside] = -np.linalg.solve(inverse[np.ix_(inside, inside)], inverse[inside])
        smoother[np.ix_(inside, inside)] = 0  # the solution there is minus the identity: the labels themselves
    return smoother


def _aucs(smoother: Floats, labels: Bools) -> Floats:
    """AUC of the out-of-fold predictions for each row of `labels`, bool[draws, n]; float64[draws]."""
    members, n = labels.sum(axis=1), labels.shape[1]
    predicted = np.round((labels - (members / n)[:, None]) @ smoother.T, 12)  # equal samples of a fold are tied
    order = np.argsort(predicted, axis=1)
    ordered, sorted_labels = (np.take_along_axis(of, order, axis=1) for of in (predicted, labels))
    rank_sums = (_mid_ranks(ordered) * sorted_labels).sum(axis=1)
    return np.asarray((rank_sums - members * (members + 1) / 2) / (members * (n - members)))


def _mid_ranks(ordered: Floats) -> Floats:
    """Ranks, from 1, of ascending values, float64[rows, n]; ties share their mean rank."""
    places = np.arange(1, ordered.shape[1] + 1)
    differs = np.diff(ordered, axis=1) != 0
    edge = np.ones((len(ordered), 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, differs]), places, 0), axis=1)
    last = np.where(np.hstack([differs, edge]), places, ordered.shape[1])
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    return np.asarray((first + last) / 2)
