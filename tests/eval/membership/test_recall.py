"""The score recall: which samples are its prefix, what is in front of each sample, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.small_evaluations import evaluate, make_run, tokens_with

from eval.groups import SEALED, Groups
from eval.membership.recall import SHOTS, Prefix, Prefixed, draw_shots, reserve
from eval.membership.scores import SCORES, Inputs, select_scores
from wellread.errors import UserError


def test_its_value_by_hand() -> None:
    ids = np.array([3, 5])
    inputs = Inputs(tokens=tokens_with(ids, np.array([-2.0, 0.0])), prefixed=tokens_with(ids, np.array([-3.0, -1.0])))
    values = SCORES["recall"].values(inputs, 1)
    assert values[0] == 1.5
    assert np.isnan(values[1])  # a text that the model predicts with certainty has no ratio


def test_it_is_computed_only_on_request() -> None:
    usual = [column.name for column in select_scores([], [0.2], has_reference=True, add="")]
    assert usual == ["loss", "zlib", "lowercase", "min_k_0.2", "min_k++_0.2", "reference", "ez"]
    requested = [column.name for column in select_scores(["recall", "gradnorm"], [0.2], has_reference=False, add="")]
    assert requested == ["recall", "gradnorm"]


def test_shots_are_of_the_documents_with_the_highest_keys() -> None:
    ids = np.arange(100, 124)
    documents = np.array([7, 7, *range(30, 52)])  # 23 documents: two shots
    keys = np.arange(24)[::-1]
    shots, withheld = draw_shots(ids, documents, keys)
    assert shots.tolist() == [100, 102]  # one of document 7, then the next document
    assert withheld.tolist() == [100, 101, 102]
    many, _ = draw_shots(np.arange(500), np.arange(500), np.arange(500))
    assert many.tolist() == [*range(499, 499 - SHOTS, -1)]


def test_its_documents_are_in_no_group(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sealed=25)
    plain = Groups.of(run, 2000, 0)
    groups, prefix = reserve(plain)
    assert groups.withheld is not None
    assert groups.withheld.size == len(prefix.texts) == 2
    for step in (0, 2, 4):
        assert set(plain.at(step)[SEALED]) - set(groups.at(step)[SEALED]) == set(groups.withheld)
    few = Groups.of(run, 5, 0)  # the draw takes the lowest keys and the prefix the highest: the groups are the same
    assert reserve(few)[0].at(4)[SEALED].tolist() == few.at(4)[SEALED].tolist()
    assert [text.tolist() for text in prefix.texts] == [
        plain.corpus.tokens(int(i)).tolist() for i in plain.sealed[np.argsort(-plain.keys[plain.sealed])[:2]]
    ]


def test_a_sample_after_a_prefix(tmp_path: Path) -> None:
    corpus = Groups.of(make_run(tmp_path / "run"), 2000, 0).corpus
    prefixed = Prefixed(corpus, np.array([1, 2, 3]), 4)
    assert prefixed.tokens(2).tolist() == [1, 2, 3, *corpus.tokens(2).tolist()]
    assert prefixed.targets(2).tolist() == [False, False, False, *corpus.targets(2).tolist()]
    assert prefixed.lengths(np.array([0, 1])).tolist() == [7, 7]
    assert (prefixed.longest, prefixed.starts(2).tolist()) == (7, [0])


def test_as_many_texts_as_the_model_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    positions: dict[str, Any] = {}
    monkeypatch.setattr(
        "wellread.models.load.Source.of", lambda directory: SimpleNamespace(config=SimpleNamespace(**positions))
    )
    corpus = Groups.of(make_run(tmp_path / "run"), 2000, 0).corpus
    prefix = Prefix([np.array([1, 2, 3]), np.array([4, 5, 6, 7]), np.array([8])])
    assert prefix.before(corpus, 4, tmp_path).prefix.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]  # no limit
    positions["max_position_embeddings"] = 9
    assert prefix.before(corpus, 4, tmp_path).prefix.tolist() == [1, 2, 3, 8]
    positions["max_position_embeddings"] = 4
    with pytest.raises(
        UserError, match="samples have up to 4 tokens and the model reads 4, so no prefix fits"
    ) as error:
        prefix.before(corpus, 4, tmp_path)
    assert "\n" not in str(error.value)


def test_too_few_sealed_documents_are_refused(tmp_path: Path, scored: list[Any]) -> None:
    with pytest.raises(UserError, match=r"--scores recall: .* fewer than 10 documents of unread ones") as error:
        evaluate(make_run(tmp_path / "run"), scores="loss,recall", bootstrap=100, progress=False)
    assert "\n" not in str(error.value)
    assert scored == []
