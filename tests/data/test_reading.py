"""Everything that the reading of a file depends on, in addition to its bytes, is part of the key of a corpus."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.prepare import prepare
from pretrain.prepare import prepare as prepare_stories
from wellread.config import PretrainConfig, RunConfig
from wellread.corpus.read import Corpus
from wellread.data import documents, sets
from wellread.data.mixture import corpus_settings
from wellread.data.sources import generated

N = 100
LINES = "".join(json.dumps({"text": generated.story(i)}) + "\n" for i in range(N))


def rows(data: object) -> list[dict[str, Any]]:
    """Settings of the data sets of a fine-tuning."""
    listed: list[dict[str, Any]] = corpus_settings(RunConfig.of(seq_len=64).data, sets.find(str(data)), "t")["sets"]
    return listed


def stories(data: object) -> dict[str, Any]:
    """Settings of the data set of a pretraining."""
    config = PretrainConfig.of(seq_len=64, vocab="512").data
    listed: dict[str, Any] = documents.corpus_settings(config, sets.documents(str(data)))["sets"][0]
    return listed


def test_a_file_that_gets_another_ending_is_another_corpus(tmp_path: Path) -> None:
    """As .txt, the lines of a .jsonl file are one document of JSON."""
    counts = []
    for name in ("s.txt", "s.jsonl"):
        (tmp_path / name).write_text(LINES)
        data, corpora = str(tmp_path / name), str(tmp_path / "corpora")
        first = prepare(RunConfig.of(model="tiny", data=f"text@{data}", corpora=corpora, seq_len=64, holdout=0))
        second = prepare_stories(PretrainConfig.of(data=data, corpora=corpora, seq_len=64, vocab="512", holdout=0))
        counts.append([Corpus.open(path).meta["sets"][0]["rows"] for path in (first, second)])
    assert counts == [[1, 1], [N, N]]


@pytest.mark.parametrize("settings", [lambda path: rows(f"text@{path}")[0], stories])
def test_only_plain_text_is_named(settings: Any, tmp_path: Path) -> None:
    """The keys of all other corpora stay as they were."""
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.dat.zst"):
        (tmp_path / name).write_text(LINES)
        assert "kinds" not in settings(tmp_path / name), name
    for name in ("a.txt", "a.txt.zst"):
        (tmp_path / name).write_text(LINES)
        assert settings(tmp_path / name)["kinds"] == [".txt"], name


def test_kinds_of_a_folder_are_in_the_order_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt.gz").write_text("two")
    assert stories(tmp_path)["kinds"] == [".txt"]
    (tmp_path / "b.jsonl").write_text(LINES)
    assert stories(tmp_path)["kinds"] == [".txt", ".jsonl", ".txt"]
    assert stories("stories").get("kinds") is None


def test_hc3_files_with_the_name_of_another_subset_are_another_corpus(tmp_path: Path) -> None:
    """Files of single subsets contain no name of the subset; their own names say which one it is."""
    answers = {"human_answers": ["An answer."], "chatgpt_answers": ["Another answer."]}
    lines = "".join(json.dumps({"question": f"Question {i}?", **answers}) + "\n" for i in range(5))
    categories, folder = [], tmp_path / "hc3"
    folder.mkdir()
    for name in ("finance", "medicine", "mine"):
        path = folder / f"{name}.jsonl"
        path.write_text(lines)
        config = RunConfig.of(model="tiny", data=f"hc3@{path}", corpora=str(tmp_path / "corpora"), seq_len=64)
        categories.append(set(Corpus.open(prepare(config)).samples(["category"])["category"].to_pylist()))
    assert categories == [{"finance"}, {"medicine"}, {""}]
    assert rows(f"hc3@{folder}")[0]["subsets_of_files"] == ["finance", "medicine", ""]
    assert "subsets_of_files" not in rows(f"hc3@{folder / 'mine.jsonl'}")[0]
    assert rows(f"hc3:medicine@{folder / 'medicine.jsonl'}")[0]["subsets_of_files"] == ["medicine"]


def test_a_description_that_names_another_column_or_other_files_is_another_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    description, texts = tmp_path / "mine.yaml", "{file: a.jsonl, schema: text, columns: {text: %s}}"
    hub = "{hub: a/b, revision: c, hub_files: %s, schema: text}"
    for form in (texts, hub):
        listed = []
        for value in ("one", "two", "one"):
            description.write_text(form % value)
            listed.append([rows(description)[0], stories(description)])
        assert listed[0] == listed[2], form
        assert all(one != two for one, two in zip(listed[0], listed[1], strict=True)), form
    assert "hub_files" not in rows("hc3")[0] | stories("tinystories-archive")
    assert rows(f"text@{tmp_path / 'a.jsonl'}")[0]["columns"] == {"text": "text"}


def test_an_archive_from_which_other_documents_were_read_is_another_corpus(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar.gz", "a.dat.zst", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(b"x")
        both = (rows(f"text@{tmp_path / name}")[0], stories(tmp_path / name))
        assert [each.get("archives") for each in both] == [3 if name in ("a.zip", "a.tar.gz") else None] * 2
