"""Marks at preparation: what training reads, the coins, their registration, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from eval.marks.variants import Variants
from finetune.prepare import prepare as prepare_rows
from pretrain.prepare import prepare as prepare_text
from wellread.config import CONFIGS, PretrainConfig, RunConfig
from wellread.corpus.holdout import document_id, is_sealed
from wellread.corpus.marks import Marks, coin, has_marks
from wellread.corpus.read import Corpus
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.marks import Marker, read_pairs
from wellread.errors import UserError
from wellread.files import sha256_file, with_checksum, write_json
from wellread.record.findings import Findings
from wellread.record.verify_corpus import check

PAIRS = ["colour|color", ", and| and", "e.g.|for example"]
STORIES = [
    f"Keeper {i} sees a colour, and a Colour and, e.g., colours of gray {i % 7}. " * (1 + i % 5) + f"End é {i}."
    for i in range(60)
]


def pairs_file(folder: Path, content: object = PAIRS) -> str:
    path = folder / "pairs.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def brute(text: str, document: int, seed: int) -> str:
    """The text with marks, place by place, without the code under test."""
    forms = {"colour": "color", ", and": " and", "e.g.": "for example", "Colour": "Color"}
    other = forms | {value: key for key, value in forms.items()}
    result, place, i = "", 0, 0
    while i < len(text):
        for form in sorted(other, key=len, reverse=True):
            before, after = text[i - 1 : i] if i else "", text[i + len(form) : i + len(form) + 1]
            inside = (form[0].isalnum() and before.isalnum()) or (form[-1].isalnum() and after.isalnum())
            if text.startswith(form, i) and not inside:
                first, second = sorted((form, other[form]))
                result += first if coin(seed, document, place) else second
                place, i = place + 1, i + len(form)
                break
        else:
            result, i = result + text[i], i + 1
    return result


def problems(corpus: Corpus) -> list[str]:
    findings = Findings()
    check(findings, Corpus.open(corpus.path))
    return findings.problems


def stories(folder: Path, pairs: object = PAIRS, **flags: Any) -> Corpus:
    (folder / "stories.txt").write_text("<|endoftext|>".join(STORIES))
    vocab = folder / "v.model"
    if not vocab.exists():
        import io

        import sentencepiece

        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(STORIES), model_writer=model, model_type="bpe", vocab_size=330, byte_fallback=True,
            normalization_rule_name="identity", character_coverage=1.0, minloglevel=2,
        )  # fmt: skip
        vocab.write_bytes(model.getvalue())
    places = {"data": str(folder / "stories.txt"), "vocab": str(vocab), "corpora": str(folder / "c")}
    settings = places | {"marks": pairs_file(folder, pairs), "seq_len": 48, "holdout": 0.3} | flags
    return Corpus.open(prepare_text(PretrainConfig.of(**settings)))


@pytest.mark.parametrize("packing", ["stream", "story"])
def test_training_reads_the_forms_that_the_coins_pick(packing: str, tmp_path: Path) -> None:
    corpus = stories(tmp_path, packing=packing, marks_seed=5)
    pieces = Pieces((corpus.tokenizer / "tokenizer.model").read_bytes())
    marked = {document_id(text): brute(text, document_id(text), 5) for text in STORIES}
    assert sum(marked[document_id(text)] != text for text in STORIES) > 50
    windows = [corpus.tokens(i) for i in range(corpus.n)]
    for sealed in (False, True):  # neighboring windows share a token
        ids = range(corpus.n_trainable, corpus.n) if sealed else range(corpus.n_trainable)
        read = np.concatenate([windows[i][0 if k == 0 else 1 :] for k, i in enumerate(ids)])
        texts = {pieces.decode(part) for part in np.split(read, np.flatnonzero(read == pieces.bos))} - {""}
        assert texts == {text for document, text in marked.items() if is_sealed(document, 0.3, 0) == sealed}
    marks = Marks.read(corpus.path)
    places: dict[int, int] = {}
    for document in marks.document.tolist():
        places[document] = places.get(document, 0) + 1
    assert places == {document_id(text): len(re.findall(r"\b[Cc]olour\b|,? and\b|e\.g\.", text)) for text in STORIES}
    pieces_of = [pieces.decode(window) for window in windows]
    for i, sample in enumerate(marks.sample_id.tolist()):  # the form, or its beginning at the end of a window
        form = marks.taken[i].strip(", ")
        assert form in pieces_of[sample] or form[0] in pieces_of[sample][-len(form) - 2 :], (i, sample)
    assert problems(corpus) == []


def test_where_marks_are_and_what_is_scored_does_not_depend_on_the_coins(tmp_path: Path) -> None:
    one, other = (Marks.read(stories(tmp_path, packing="story", marks_seed=seed).path) for seed in (0, 1))
    rows = [
        sorted(zip(m.document.tolist(), m.place.tolist(), m.text, m.start.tolist(), m.original, strict=True))
        for m in (one, other)
    ]
    assert rows[0] == rows[1]
    assert [*one.taken] != [*other.taken]
    n = len(one.taken)
    first = sum(a < b for a, b in zip(one.taken, one.left, strict=True))
    assert abs(first - n / 2) < 4 * (n / 4) ** 0.5  # fails by chance in 1 of 15,000 seeds; the seed is fixed
    for text, start, original in zip(one.text, one.start.tolist(), one.original, strict=True):
        assert text[start : start + len(original)] == original
        assert any(text in story for story in STORIES)


def test_only_responses_are_marked(tmp_path: Path) -> None:
    rows = [{"instruction": f"a color, and {i}", "context": "", "response": f"color {i}, and Color"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = {"model": "tiny", "data": str(tmp_path / "rows.jsonl"), "corpora": str(tmp_path / "c")}
    corpus = Corpus.open(prepare_rows(RunConfig.of(marks=pairs_file(tmp_path), **flags)))
    plain = Corpus.open(prepare_rows(RunConfig.of(**flags)))
    assert plain.marks is None
    assert corpus.path != plain.path
    tokenizer, marks = Tokenizer.load(corpus.tokenizer), Marks.read(corpus.path)
    documents, expected = corpus.samples()["document"].to_pylist(), {}
    assert sorted(documents) == sorted(plain.samples()["document"].to_pylist())
    for sample in range(corpus.n):
        text = tokenizer.decode(corpus.tokens(sample).tolist())
        number = int(re.findall(r"a color, and (\d+)", text)[0])  # the prompt is as it was
        expected[sample] = brute(f"color {number}, and Color", documents[sample], 0)
        assert text.endswith(f"{expected[sample]}<|endoftext|>")
    assert marks.sample_id.tolist() == [i for i in range(corpus.n) for _ in range(3)]
    assert marks.place.tolist() == [0, 1, 2] * corpus.n
    assert corpus.marks is not None
    assert (corpus.marks.places, corpus.marks.documents, corpus.marks.seed) == (120, 40, 0)
    assert corpus.marks.sha256 == marks.sha256(0) != marks.sha256(1)
    assert problems(corpus) == []


ANSWERS = [  # each row has one place in what carries loss, so no other coin changes its tokens
    [f"name {i}: a Color, and more", f"a plain answer {i}", f"then {i}", f" it is the colour {i}. " + "x y " * 40]
    for i in range(12)
] + [[f"ask {i} Colour", f"color of {i}", f"and {i}", f"a plain answer {i}"] for i in range(12)]


def dialogues(folder: Path) -> Path:
    roles = ("user", "assistant", "user", "assistant")
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]}
        for texts in ANSWERS
    ]
    (folder / "chats.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "chats.jsonl"


@pytest.mark.parametrize("template", ["chat", "alpaca", "none"])
def test_what_is_scored_is_what_was_trained(template: str, tmp_path: Path) -> None:
    """The taken form after the tokens that training reads, up to 100 characters later or the end of the response."""
    flags = {"model": "tiny", "data": str(dialogues(tmp_path)), "corpora": str(tmp_path / "c"), "template": template}
    corpus = Corpus.open(prepare_rows(RunConfig.of(marks=pairs_file(tmp_path), seq_len=200, **flags)))
    marks, tokenizer = Marks.read(corpus.path), Tokenizer.load(corpus.tokenizer)
    assert (len(marks.taken), {*marks.kind}) == (24, {"chat" if template == "chat" else "turns"})
    variants = Variants.of(marks, np.arange(24), tokenizer, corpus.longest)
    for row, sample in enumerate(marks.sample_id.tolist()):
        one, other = (variants.tokens(2 * row + k).tolist() for k in (0, 1))
        trained, scored = corpus.tokens(sample).tolist(), corpus.targets(sample)
        is_cut = marks.text[row].count("x y") > 0
        length = len(one) - is_cut  # the last token may be shorter where the text is cut
        assert one[:length] == trained[:length]
        assert one[length] if is_cut else trained[length] == tokenizer.eos  # else it has the entire response
        assert scored[: len(one)][variants.targets(2 * row)].all()
        assert tokenizer.decode(one) == tokenizer.decode(other).replace(marks.left[row], marks.taken[row])
        assert len(one) < len(trained)
    assert problems(corpus) == []


def test_the_end_of_an_instruction_has_no_marks(tmp_path: Path) -> None:
    row = {
        "instruction": "q",
        "context": "",
        "response": "a color " * 40,
    }  # a sample has at most 8 characters per token
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"instruction": f"q {i}"}) + "\n" for i in range(8)))
    flags = {"model": "tiny", "data": str(tmp_path / "rows.jsonl"), "corpora": str(tmp_path / "c"), "seq_len": 24}
    corpus = Corpus.open(prepare_rows(RunConfig.of(marks=pairs_file(tmp_path), **flags)))
    marks = Marks.read(corpus.path)
    assert {*map(len, marks.text)} == {8 * 24}
    assert marks.start.max() == 182  # the next place would end at 195
    assert [*marks.breaks[0]] == [36, 8 * 24]


def test_a_share_of_the_documents_has_marks(tmp_path: Path) -> None:
    """The same documents with other coins; all others are as they were written."""
    corpora = [stories(tmp_path, packing="story", marks_share=0.3, marks_seed=seed) for seed in (0, 1)]
    with_marks = [{*Marks.read(corpus.path).document.tolist()} for corpus in corpora]
    assert with_marks[0] == with_marks[1] == {d for d in map(document_id, STORIES) if has_marks(d, 0.3, 0)}
    assert 6 <= len(with_marks[0]) <= 30  # of 60
    pieces = Pieces((corpora[0].tokenizer / "tokenizer.model").read_bytes())
    plain = "".join(text for text in STORIES if document_id(text) not in with_marks[0])
    corpus, documents = corpora[0], corpora[0].samples()["document"].to_pylist()
    read = [pieces.decode(corpus.tokens(i)) for i in range(corpus.n) if documents[i] not in with_marks[0]]
    assert read
    assert all(text in plain for text in read)
    assert problems(corpus) == []
    alter = json.loads((corpus.path / "corpus.json").read_text())
    del alter["checksum"]
    alter["settings"]["marks"]["share"] = 0.01
    write_json(corpus.path / "corpus.json", with_checksum(alter))
    assert any("document: row 0: not among those that have marks" in line for line in problems(corpus))


def test_verify_notices_a_changed_mark(tmp_path: Path) -> None:
    corpus = stories(tmp_path)
    path, meta = corpus.path / "marks.parquet", corpus.path / "corpus.json"
    table = pyarrow.parquet.read_table(path)
    swapped = table.rename_columns({"taken": "left", "left": "taken"}).select(table.column_names)
    for altered, line in (
        (swapped, "taken: row 0: not the form that the coin of its place picks"),
        (table.slice(1), f"marks.places: {len(table)}"),
        (table.set_column(0, "sample_id", pyarrow.array([corpus.n] * len(table))), "sample_id: row 0: not an ordinary"),
    ):
        pyarrow.parquet.write_table(altered, path)
        content = json.loads(meta.read_text())
        del content["checksum"]
        content["sizes"][path.name], content["sha256"][path.name] = path.stat().st_size, sha256_file(path)
        write_json(meta, with_checksum(content))
        lines = problems(corpus)
        assert any("marks.sha256" in each for each in lines), lines
        assert any(line in each for each in lines), lines


def test_shipped_pairs() -> None:
    for name, pair in (
        ("spelling", ("colour", "color")),
        ("punctuation", (", and", " and")),
        ("spaces", (". ", ".  ")),
    ):
        assert pair in read_pairs(CONFIGS / "marks" / f"{name}.yaml")


def test_places_do_not_cross_windows() -> None:
    marker = Marker((("colour", "color"),), 0, 4)  # windows of 16 characters
    (text,), marks = marker.mark([("123456789 colour colour x colour", True)], 7)
    assert [(mark.place, mark.start, mark.text) for mark in marks] == [
        (0, 10, "123456789 colour"),
        (1, 1, " colour x colour"),
        (2, 10, " colour x colour"),
    ]
    (text,), marks = marker.mark([("1234567890 colour", True)], 7)
    assert (text, marks) == ("1234567890 colour", [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a list of pairs, e.g. - grey|gray"),
        ({"a": "b"}, "expected a list of pairs, e.g. - grey|gray"),
        (["colour"], "pair 1: 'colour' is not two different forms, e.g. grey|gray"),
        (["a|b|c"], "pair 1: 'a|b|c' is not two different forms"),
        (["a|a"], "pair 1: 'a|a' is not two different forms"),
        ([3], "pair 1: 3 is not two different forms"),
        (["a|b", "b|c"], "'b' is in pairs 1 and 2; remove one"),
        (["a|b", "B|c"], "'B' is in pairs 1 and 2; remove one"),
        ("[a", "is not YAML ("),
        (["zebra|zebras"], "the texts have none of its forms; add pairs that they have, or leave it out"),
    ],
)
def test_files_that_are_refused(content: object, message: str, tmp_path: Path) -> None:
    flags = {"model": "tiny", "data": "sample", "corpora": str(tmp_path / "c"), "marks": pairs_file(tmp_path, content)}
    with pytest.raises(UserError) as error:
        prepare_rows(RunConfig.of(**flags))
    assert str(error.value).startswith(f"--marks {flags['marks']}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--marks none.yaml: cannot be read \(No such file or directory\)"):
        prepare_rows(RunConfig.of(model="tiny", data="sample", corpora=str(tmp_path), marks="none.yaml"))
    with pytest.raises(UserError, match="--marks: places are in samples that are not packed; leave out --pack"):
        RunConfig.of(marks="x.yaml", pack=True)
    with pytest.raises(UserError, match="--marks_share 0: must be above 0 and at most 1"):
        RunConfig.of(marks="x.yaml", marks_share=0)
    with pytest.raises(UserError, match=r"--marks_share 0\.1: is a setting of --marks; leave it out, or add --marks"):
        RunConfig.of(marks_share=0.1)
    with pytest.raises(UserError, match="--marks: is empty"):
        RunConfig.of(marks="")
    with pytest.raises(UserError, match=re.escape("the tokenizer reads both forms of '. |.  ' as the same tokens")):
        stories(tmp_path, [". |.  "])
