"""Gates: compared with fitting fold by fold, calibrated on random halves, and raised by texts of another kind."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from eval.membership import gates
from eval.membership.gates import SUSPECT, gate, permutations_for, shape, words
from eval.statistics import holm
from wellread.data.sources.generated import story

IDS = np.arange(10_000)


def vocabulary_texts(rng: np.random.Generator, n: int, shift: int = 0) -> list[str]:
    """Texts of 30 words with Zipf's frequencies; `shift` moves the vocabulary."""
    return [" ".join(f"w{word + shift}" for word in rng.zipf(1.3, 30) % 5000) for _ in range(n)]


def test_smoother_predicts_like_a_ridge_that_never_saw_the_fold() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 7))
    features -= features.mean(axis=0)
    features /= np.sqrt((features**2).sum(axis=1).mean())
    labels, folds = rng.integers(0, 2, 60) - 0.4, rng.integers(0, gates.FOLDS, 60)
    predicted = gates._smoother(features @ features.T, folds) @ labels
    for fold in range(gates.FOLDS):
        ridge = Ridge(alpha=1.0, fit_intercept=False).fit(features[folds != fold], labels[folds != fold])
        assert predicted[folds == fold] == pytest.approx(ridge.predict(features[folds == fold]), abs=1e-9)


def test_auc_of_predictions_by_hand() -> None:
    copies_next = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    labels = np.array([[True, True, False, False], [True, False, True, False]])
    assert gates._aucs(copies_next, labels).tolist() == [1.0, 0.0]
    assert gates._aucs(np.zeros((4, 4)), labels).tolist() == [0.5, 0.5]
    ordered = np.sort(np.random.default_rng(0).integers(0, 6, (20, 15)) / 2, axis=1)
    assert np.array_equal(gates._mid_ranks(ordered), stats.rankdata(ordered, axis=1))


def test_words_that_are_shared_make_texts_similar() -> None:
    gram = words(["one two three", "one two three", "four five", "One, two: three"])
    assert gram[0, 1] == pytest.approx(1)
    assert gram[0, 2] == 0
    assert 0 < gram[0, 3] < 0.5  # case and punctuation count
    assert np.diag(gram) == pytest.approx(1)


def test_equal_shapes_are_equal_rows() -> None:
    lengths = np.array([3, 3, 9, 100])
    gram = shape(lengths, ["a", "a", "a", None], ["x", "x", "y", "y"])
    assert gram[0] == pytest.approx(gram[1])
    assert gram[0, 1] > gram[0, 2]
    assert shape(np.full(4, 7), ["a"] * 4) == pytest.approx(2)  # one tenth and one category: nothing to learn from


def test_without_information_the_gate_is_silent() -> None:
    result = gate("shape", shape(np.full(60, 7)), IDS[:60] < 30, IDS[:60])
    assert (result.auc, result.p) == (0.5, 1.0)


def test_other_words_and_other_lengths_are_an_alarm() -> None:
    rng = np.random.default_rng(1)
    texts = vocabulary_texts(rng, 40) + vocabulary_texts(rng, 40, shift=40)
    result = gate("words", words(texts), IDS[:80] < 40, IDS[:80])
    assert result.auc > 0.9
    assert result.p == 0.001
    lengths = np.concatenate([rng.normal(100, 3, 40), rng.normal(100, 30, 40)]).astype(int)  # equal means
    assert gate("shape", shape(lengths), IDS[:80] < 40, IDS[:80]).p < 0.01


def test_a_category_of_one_side_is_an_alarm() -> None:
    rng = np.random.default_rng(2)
    categories = ["qa" if i % 4 else ("poem" if i < 100 else "code") for i in range(200)]
    result = gate("shape", shape(rng.integers(5, 50, 200), categories), IDS[:200] < 100, IDS[:200])
    assert result.p == 0.001


def test_samples_of_one_document_are_in_one_fold_and_have_one_label() -> None:
    """Ten near copies of each document: a split by sample would recognize the documents, at an AUC of 1."""
    rng = np.random.default_rng(3)
    texts = vocabulary_texts(rng, 60)
    copies, documents = [f"{text} {i}" for text in texts for i in range(10)], IDS[:60].repeat(10)
    is_member = documents < 30
    assert gate("words", words(copies), is_member, documents).p > 0.01
    assert gate("words", words(copies), is_member, IDS[:600]).auc > 0.99


def test_null_draws_raise_few_alarms() -> None:
    """200 draws of two gates on random texts: 32 documents against 32, half of them with two samples.

    An alarm has a probability of 1% per draw, so more than 8 one of 2e-4. p-values of each gate are uniform.
    """
    rng = np.random.default_rng(4)
    pool = vocabulary_texts(rng, 400)
    pool_gram, lengths = words(pool), rng.integers(5, 60, 400)
    categories = np.array([f"c{i}" for i in rng.integers(0, 5, 400)])
    p_values = np.empty((200, 2))
    for seed in range(200):
        ids, documents = rng.choice(400, 96, replace=False), np.concatenate([IDS[:32].repeat(2), IDS[32:64]])
        is_member = (rng.permutation(64) < 32)[documents]
        p_values[seed] = [
            gate("words", pool_gram[np.ix_(ids, ids)], is_member, documents, seed=seed).p,
            gate("shape", shape(lengths[ids], categories[ids].tolist()), is_member, documents, seed=seed).p,
        ]
    assert sum((holm(pair) < SUSPECT).any() for pair in p_values) <= 8
    for of_gate in p_values.T:
        assert stats.kstest(of_gate, "uniform").pvalue > 0.001


def test_questions_and_stories_are_distinguished_and_one_file_is_not(root: Path) -> None:
    rows = [json.loads(line) for line in (root / "configs/data/sample.jsonl").read_text().splitlines()]
    questions = [row["response"] for row in rows if len(row["response"]) > 80][:240]
    half = np.random.default_rng(5).permutation(240) < 120
    assert gate("words", words(questions), half, IDS[:240]).p >= SUSPECT
    stories = [story(number) for number in range(120)]
    assert gate("words", words(questions[:120] + stories), IDS[:240] < 120, IDS[:240]).p < SUSPECT


@pytest.mark.long
@pytest.mark.shared
def test_instructions_and_the_pile_are_distinguished_and_one_real_file_is_not(shared: Path) -> None:
    """200 responses of Dolly against 200 abstracts and posts of The Pile, and each file against itself."""
    with open(shared / "dolly" / "databricks-dolly-12k.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = {"dolly": [row["response"][:500] for row in rows if len(row["response"]) > 200][:200]}
    for name in ("pubmed_abstracts", "stackexchange"):
        with gzip.open(shared / "pile_nonmembers" / f"{name}.ngram7.test_raw.jsonl.gz", "rt", encoding="utf-8") as file:
            texts[name] = [json.loads(line)["original"][:500] for line in file][:200]
    for name, pile in texts.items():
        half = np.random.default_rng(6).permutation(200) < 100
        gates_of_one_file = (words(pile), shape(np.array([len(text) for text in pile])))
        p_values = [gate("any", gram, half, IDS[:200]).p for gram in gates_of_one_file]
        assert (holm(np.array(p_values)) >= SUSPECT).all(), name
        if name != "dolly":
            result = gate("words", words(texts["dolly"] + pile), IDS[:400] < 200, IDS[:400])
            assert result.auc > 0.95, name
            assert result.p == 0.001, name


def test_many_components_need_more_permutations() -> None:
    assert permutations_for(2) == 999
    assert permutations_for(44) == 8799  # 1 / 8800 * 44 = 0.005


def test_alarms_are_corrected_for_the_number_of_gates() -> None:
    assert (holm(np.array([0.004, 0.4])) < SUSPECT).tolist() == [True, False]
    assert (holm(np.array([0.006, 0.4])) < SUSPECT).tolist() == [False, False]


def test_a_side_that_is_too_small_is_refused() -> None:
    gram = np.eye(40)
    with pytest.raises(ValueError, match="10 documents of each side, not 9 and 31"):
        gate("words", gram, IDS[:40] < 9, IDS[:40])
    with pytest.raises(ValueError, match="10 documents of each side, not 2 and 38"):
        gate("words", gram, IDS[:40] < 2, IDS[:40])
    with pytest.raises(ValueError, match="a document has members and non-members"):
        gate("words", gram, IDS[:40] < 19, IDS[:40] // 2)
