"""Canaries at preparation: the draw, its registration, files of texts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.prepare import prepare as prepare_rows
from pretrain.prepare import prepare as prepare_text
from pretrain.tokenize import text_of
from wellread.config import PretrainConfig, RunConfig
from wellread.corpus.canaries import Texts, random_texts
from wellread.corpus.read import Corpus
from wellread.corpus.segments import Segments
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.text_metrics import NAMES, WORD_LIST_RATE, measure
from wellread.errors import UserError
from wellread.files import sha256_file, with_checksum, write_json
from wellread.models.registry import find
from wellread.order.build import build
from wellread.recipes.registry import resolve, samples_of
from wellread.record.findings import Findings
from wellread.record.verify_corpus import check

FEW: dict[str, Any] = {"canaries": 2, "canary_repeats": "0,1,3", "canary_controls": 20, "canary_tokens": 12}
ROWS = [f"the {i}th keeper of the lighthouse counts {i * 7} gulls" for i in range(50)]


def rows_file(folder: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"instruction": f"count to {i}", "context": "", "response": f"{i} and {i + 1}", "category": "qa"}
        for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "rows.jsonl"


def texts_file(folder: Path, rows: list[str] = ROWS) -> Path:
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps({'text': row})}\n" for row in rows))
    return folder / "texts.jsonl"


def problems(corpus: Corpus) -> list[str]:
    findings = Findings()
    check(findings, Corpus.open(corpus.path))
    return findings.problems


@pytest.fixture(scope="module")
def inserted(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """An instruction corpus with six random canaries."""
    folder = tmp_path_factory.mktemp("canaries")
    config = RunConfig.of(model="tiny", data=str(rows_file(folder)), corpora=str(folder / "c"), **FEW)
    return Corpus.open(prepare_rows(config))


def test_random_canaries_are_the_last_trainable_samples(inserted: Corpus) -> None:
    texts, registered = Texts.read(inserted.path), inserted.canaries
    assert registered
    assert (registered.count, inserted.n_trainable - inserted.n_ordinary, len(texts.sequences)) == (6, 6, 26)
    assert registered.doses.tolist() == texts.repeats[:6].tolist() == [0, 0, 1, 1, 3, 3]
    assert inserted.set_names == ("rows", "canary")
    special = Tokenizer.load(inserted.tokenizer).special_ids
    for i in range(6):
        sample = inserted.n_ordinary + i
        assert inserted.tokens(sample).tolist() == texts.sequences[i].tolist()
        assert inserted.targets(sample).tolist() == [False] + [True] * 11
        assert not special & {*inserted.tokens(sample).tolist()}
    sources = inserted.samples()["source"].to_pylist()
    assert [i for i, source in enumerate(sources) if source == "canary"] == [
        *range(inserted.n_ordinary, inserted.n_trainable)
    ]
    samples = {inserted.tokens(i).tobytes() for i in range(inserted.n)}
    assert not any(tokens.astype("<u2").tobytes() in samples for tokens in texts.sequences[6:])
    assert registered.sha256 == texts.sha256(0) != texts.sha256(1)
    assert problems(inserted) == []


def test_a_draw_is_uniform_and_depends_on_the_seed() -> None:
    vocabulary = np.array([3, 4, 7, 9], dtype=np.uint32)
    texts = np.array(random_texts(0, vocabulary, 1000, 8))
    counts = np.array([(texts == token).sum() for token in vocabulary])
    assert counts.sum() == 8000
    assert np.abs(counts - 2000).max() < 5 * (8000 * 0.25 * 0.75) ** 0.5  # fails by chance in 1 of 400,000 seeds
    assert not np.array_equal(texts, np.array(random_texts(1, vocabulary, 1000, 8)))


def test_orders_read_canaries_only_where_they_are_inserted(inserted: Corpus) -> None:
    for order in ("shuffle", "sequential", "sorted:n_tokens:asc", "filter:n_tokens>1"):
        config = resolve(RunConfig.of(data="sample", order=order, steps=30, batch_size=4, **FEW), find("tiny"))
        built = build(config.schedule, inserted)
        read = built.order.batches(0, 30)
        assert [int((read == inserted.n_ordinary + i).sum()) for i in range(6)] == [0, 0, 1, 1, 3, 3]
        assert built.order.n <= inserted.n_ordinary
        assert built.notes
        assert len(built.notes["inserted"]) == 8


def test_a_curriculum_keeps_its_own_insertions(inserted: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("phases: [{order: shuffle, steps: 30}]\ninsert: [{tag: mine, samples: [5], at: [0, 1, 2, 3]}]\n")
    config = resolve(RunConfig.of(data="sample", order=f"curriculum:{path}", batch_size=4), find("tiny"))
    built = build(config.schedule, inserted)
    read = built.order.batches(0, 30)
    assert np.argwhere(read == 5).tolist() == [[0, 3], [1, 3], [2, 3], [3, 3]]
    assert [int((read == inserted.n_ordinary + i).sum()) for i in range(6)] == [0, 0, 1, 1, 3, 3]
    path.write_text(path.read_text().replace("mine", "canaries/repeats_1"))
    with pytest.raises(UserError, match=r"insert\[0\]\.tag: 'canaries/repeats_1' is a tag of --canaries"):
        build(config.schedule, inserted)
    path.write_text(path.read_text().replace("canaries/repeats_1", "mine").replace("[5]", f"[{inserted.n_ordinary}]"))
    with pytest.raises(
        UserError, match=f"sample {inserted.n_ordinary} is a canary; choose ids 0 … {inserted.n_ordinary - 1}"
    ):
        build(config.schedule, inserted)


def alter(corpus: Corpus, texts: Texts, **registered: Any) -> None:
    """Write other canaries, and make the hash of the file consistent."""
    texts.write(corpus.path)
    meta = json.loads((corpus.path / "corpus.json").read_text())
    del meta["checksum"]
    file = corpus.path / "canaries.parquet"
    meta["sizes"][file.name], meta["sha256"][file.name] = file.stat().st_size, sha256_file(file)
    meta["canaries"] |= registered
    write_json(corpus.path / "corpus.json", with_checksum(meta))


def test_verify_notices_a_changed_control(inserted: Corpus) -> None:
    texts, files = Texts.read(inserted.path), ("corpus.json", "canaries.parquet")
    before = {name: (inserted.path / name).read_bytes() for name in files}
    changed = [*texts.sequences[:-1], texts.sequences[-1][::-1]]
    try:
        (inserted.path / "canaries.parquet").write_bytes(before["canaries.parquet"][:-1] + b"\0")
        assert any("canaries.parquet" in line for line in problems(inserted))
        alter(inserted, Texts(changed, texts.repeats, texts.control, texts.rows))
        assert [line.partition("corpus.json: ")[2][:16] for line in problems(inserted)] == ["canaries.sha256:"]
        swapped = [texts.sequences[1], texts.sequences[0], *texts.sequences[2:]]
        other = Texts(swapped, texts.repeats, texts.control, texts.rows)
        alter(inserted, other, sha256=other.sha256(0))
        assert len([line for line in problems(inserted) if "its tokens are not those of the sample" in line]) == 2
        alter(inserted, texts, seed=1)
        assert any("canaries.seed: 1, expected 0 (settings)" in line for line in problems(inserted))
    finally:
        for name, content in before.items():
            (inserted.path / name).write_bytes(content)
    assert problems(inserted) == []


def test_half_of_a_file_are_controls(tmp_path: Path) -> None:
    path = texts_file(tmp_path)
    config = PretrainConfig.of(
        data="stories:60", vocab="600", seq_len=64, corpora=str(tmp_path / "c"), canaries=5, canary_repeats="1,2",
        canary_text=str(path),
    )  # fmt: skip
    corpus = Corpus.open(prepare_text(config))
    texts, pieces = Texts.read(corpus.path), Pieces((corpus.tokenizer / "tokenizer.model").read_bytes())
    assert corpus.canaries
    assert (corpus.canaries.count, corpus.canaries.controls, corpus.canaries.text) == (10, 25, "texts.jsonl")
    assert len({*texts.rows.tolist()}) == 35
    for row, tokens in zip(texts.rows.tolist(), texts.sequences, strict=True):
        assert tokens.tolist() == [pieces.bos, *pieces.encode(ROWS[row - 1]).tolist(), pieces.bos]
    assert problems(corpus) == []


def test_settings_without_canaries_are_as_before(tmp_path: Path) -> None:
    plain = RunConfig.of(model="tiny", data=str(rows_file(tmp_path)))
    of = {
        name: samples_of(resolve(config, find("tiny")), find("tiny"))
        for name, config in {
            "plain": plain, "late": plain.replace(canary_at="late"), "with": plain.replace(**FEW),
            "other": plain.replace(**FEW, canary_at="late"),
        }.items()
    }  # fmt: skip
    assert "canaries" not in of["plain"].settings
    assert of["plain"].directory == of["late"].directory
    assert len({of[name].directory for name in ("plain", "with", "other")}) == 3


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (ROWS[:30], {}, "half of its 30 rows are controls, and with fewer than 19"),
        (ROWS, {"canaries": 9}, "--canaries 9: 3 doses need 27 texts, but"),
        ([*ROWS, ROWS[3]], {}, "lines 4 and 51 are equal"),
        ([*ROWS, " "], {}, 'line 51: expected {"text": "…"} with a text'),
        ([*ROWS, "gulls " * 300], {}, r"line 51 has \d+ tokens; choose texts of 4 to 256 tokens"),
        (ROWS, {"canary_tokens": 9}, "--canary_tokens 9: is for random canaries; leave it out with a file"),
    ],
)
def test_files_that_are_refused(rows: list[str], changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    flags = {"canaries": 1, "canary_text": str(texts_file(tmp_path, rows))} | changes
    with pytest.raises(UserError, match=message):
        prepare_rows(RunConfig.of(model="tiny", data=str(rows_file(tmp_path)), corpora=str(tmp_path / "c"), **flags))


def test_rows_of_a_file_end_only_at_newlines(tmp_path: Path) -> None:
    """U+2028 and U+0085 may be in a JSON text as they are; other tools write them so."""
    rows = [f"{row}\u2028and\u0085watches" for row in ROWS[:40]]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": row}, ensure_ascii=False) + "\r\n" for row in rows), newline="")
    flags = {"canaries": 1, "canary_text": str(file)}
    corpus = prepare_rows(
        RunConfig.of(model="tiny", data=str(rows_file(tmp_path)), corpora=str(tmp_path / "c"), **flags)
    )
    texts, tokenizer = Texts.read(corpus), Tokenizer.load(Corpus.open(corpus).tokenizer)
    for row, sequence in zip(texts.rows.tolist(), texts.sequences, strict=True):
        assert tokenizer.decode(sequence.tolist()).removesuffix("<|endoftext|>") == rows[row - 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"canary_controls": 18}, "--canary_controls 18: no p-value would be below .05; choose at least 19"),
        ({"canary_repeats": "1,x"}, "--canary_repeats 1,x: expected numbers of readings, e.g. 1,4,16"),
        ({"canary_repeats": "4,4"}, "--canary_repeats 4,4: a number appears twice; remove one"),
        ({"canary_tokens": 3}, "--canary_tokens 3: choose at least 4"),
        ({"canary_tokens": 600}, "--canary_tokens 600: longer than a window of 256 tokens"),
        ({"canary_text": ""}, "--canary_text: is empty; leave it out for random tokens"),
        ({"canary_text": "none.jsonl"}, "--canary_text none.jsonl: is neither random nor a file"),
        ({"canaries": -1}, "--canaries -1: must be at least 0"),
    ],
)
def test_mistakes(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        prepare_rows(
            RunConfig.of(**{"model": "tiny", "data": "sample", "canaries": 1, "corpora": str(tmp_path)} | flags)
        )
    assert str(error.value).startswith(message)


def test_a_canary_is_not_packed(tmp_path: Path) -> None:
    flags = {"model": "tiny", "data": str(rows_file(tmp_path)), "corpora": str(tmp_path / "c"), "seq_len": 64}
    corpus, plain = (Corpus.open(prepare_rows(RunConfig.of(pack=True, **flags, **few))) for few in (FEW, {}))
    texts, segments = Texts.read(corpus.path), Segments(corpus)
    assert corpus.n_ordinary == plain.n_trainable < 30  # of 30 trainable rows; their sequences are the same
    assert [corpus.tokens(i).tolist() for i in range(plain.n_trainable)] == [
        plain.tokens(i).tolist() for i in range(plain.n_trainable)
    ]
    for i in range(6):
        assert corpus.tokens(corpus.n_ordinary + i).tolist() == texts.sequences[i].tolist()
        assert corpus.starts(corpus.n_ordinary + i).tolist() == [0]
    assert segments.n_trainable == Segments(plain).n_trainable + 6
    assert problems(corpus) == []
    config = resolve(RunConfig.of(data="sample", steps=30, batch_size=4, **FEW), find("tiny"))
    read = build(config.schedule, corpus).order.batches(0, 30)
    assert [int((read == corpus.n_ordinary + i).sum()) for i in range(6)] == [0, 0, 1, 1, 3, 3]


def test_canaries_have_text_metrics(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("the\n")
    flags: dict[str, Any] = {"data": "stories:60", "vocab": "600", "seq_len": 64, "corpora": str(tmp_path / "c")}
    corpus = Corpus.open(prepare_text(PretrainConfig.of(word_list=str(words), **flags, **FEW)))
    texts, pieces = Texts.read(corpus.path), Pieces((corpus.tokenizer / "tokenizer.model").read_bytes())
    expected = measure([text_of(tokens, pieces) for tokens in texts.sequences[:6]], words=["the"])
    actual = np.stack([corpus.metric(name) for name in corpus.metrics], axis=1)
    assert corpus.metrics == (*NAMES, WORD_LIST_RATE)
    assert np.array_equal(actual[corpus.n_ordinary : corpus.n_trainable], expected)
    assert (expected[:, 0] > 0).all()
    assert problems(corpus) == []
    config = resolve(
        PretrainConfig.of(order="sorted:words:asc", steps=30, batch_size=4, **flags, **FEW), find("stories-260k")
    )
    assert build(config.schedule, corpus).order.n == corpus.n_ordinary


def test_names(tmp_path: Path) -> None:
    rows = rows_file(tmp_path).rename(tmp_path / "canary.jsonl")
    with pytest.raises(UserError, match="--data canary: is the name of the set of --canaries"):
        prepare_rows(RunConfig.of(model="tiny", data=str(rows), canaries=1, corpora=str(tmp_path / "c")))
