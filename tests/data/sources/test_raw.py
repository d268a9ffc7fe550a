"""Raw text: windows, target tokens, and kinds of files."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from finetune.marked import Item
from finetune.prepare import prepare
from finetune.tokenize import tokenize
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.sets import find
from wellread.data.sources import megatron_write, raw
from wellread.data.sources.raw import Raw
from wellread.data.sources.source import Source
from wellread.errors import UserError

TEXTS = ["one two three four five six seven", "eight nine", "", "ten"]


@pytest.mark.shared
def test_each_token_except_the_first_carries_loss_once(pythia_tokenizer: Path) -> None:
    """Windows of 4 overlap by one token: the last token of a window is the first, without loss, of the next."""
    items = [Item(0, number, Raw(text)) for number, text in enumerate(TEXTS, start=1)]
    backend = Tokenizer.load(pythia_tokenizer)
    shard = tokenize(items, backend, RunConfig.of(seq_len=4, holdout=0.0).data)
    document = backend.prompts([TEXTS[0]])[0] + [0]
    assert len(document) == 8
    assert [(sample.row, sample.tokens, sample.spans) for sample in shard.samples[:3]] == [
        (1, document[:4], [(1, 4)]), (1, document[3:7], [(1, 4)]), (1, document[6:8], [(1, 2)]),
    ]  # fmt: skip
    assert [sample.row for sample in shard.samples] == [1, 1, 1, 2, 4]
    assert len({sample.document for sample in shard.samples[:3]}) == 1
    assert dict(shard.counts) == {"dropped_empty_document": 1}
    with_loss = [token for sample in shard.samples[:3] for token in sample.tokens[1:]]
    assert with_loss == document[1:]


def test_all_windows_of_a_document_are_sealed_or_none() -> None:
    class Bytes:
        eos = 0
        represents_all = True

        def prompts(self, texts: list[str]) -> list[list[int]]:
            return [list(text.encode()) for text in texts]

    items = [Item(0, i, Raw(f"{i} " * 20)) for i in range(200)]
    shard = tokenize(items, Bytes(), RunConfig.of(seq_len=8, holdout=0.5).data)
    sides: dict[int, set[bool]] = {}
    for sample in shard.samples:
        sides.setdefault(sample.row, set()).add(sample.sealed)
    assert {len(side) for side in sides.values()} == {1}
    assert 60 < sum(True in side for side in sides.values()) < 140


def test_kinds_of_files(tmp_path: Path) -> None:
    """The Pile's lm_dataformat, compressed; plain text; all in one folder."""
    lines = [{"text": text, "meta": {"pile_set_name": "ArXiv"}} for text in TEXTS[:2]]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(content))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content + b'{"meta": {}}\n'))
    (tmp_path / "c.txt").write_text("<|endoftext|>".join(TEXTS))
    source = find(f"text@{tmp_path}").sources[0]
    assert [path.name for path in source.paths] == ["a.jsonl.zst", "b.jsonl.gz", "c.txt"]
    results = list(raw.documents(source))
    error = f"{tmp_path / 'b.jsonl.gz'} row 3: no 'text'; its fields are meta"
    assert [(i, each if isinstance(each, str) else (each[0].text, each[0].category)) for i, each in results] == [
        (1, (TEXTS[0], "ArXiv")), (2, (TEXTS[1], "ArXiv")), (3, (TEXTS[0], "ArXiv")), (4, (TEXTS[1], "ArXiv")),
        (5, error), (6, (TEXTS[0], "")), (7, (TEXTS[1], "")), (9, (TEXTS[3], "")),
    ]  # fmt: skip
    assert raw.count(source) == 8


def test_tokens_of_megatron_files_stay_unchanged(tmp_path: Path, corpus: Corpus, small_model: Path) -> None:
    documents = [np.arange(5, 5 + n, dtype=np.uint16) for n in (3, 40, 1)]
    megatron_write.write(tmp_path / "pile", documents)
    settings = {"model": str(small_model), "corpora": str(tmp_path / "corpora"), "seq_len": 16, "holdout": 0.0}
    for data in (tmp_path / "pile", tmp_path / "pile.idx", tmp_path / "pile.bin"):
        compiled = Corpus.open(prepare(RunConfig.of(data=f"text@{data}", **settings)))
        assert (compiled.meta["kind"], compiled.meta["counts"]["dropped_empty_document"]) == ("text", 1)
        assert [compiled.tokens(i).tolist() for i in range(compiled.n)] == [
            [5, 6, 7], list(range(5, 21)), list(range(20, 36)), list(range(35, 45)),
        ]  # fmt: skip
        assert compiled.n_targets(np.arange(4)).tolist() == [2, 15, 15, 9]
    megatron_write.write(tmp_path / "large", [[1, 2048]])
    for model, message in (
        (str(small_model), f"{tmp_path / 'large'} row 1: token 2,048, but small has a vocabulary of 2,048; "),
        ("tiny", f"{tmp_path / 'large'} row 1: contains tokens, but tiny has no tokenizer; "),
    ):
        with pytest.raises(UserError) as refused:
            prepare(RunConfig.of(data=f"text@{tmp_path / 'large'}", **(settings | {"model": model})))
        assert str(refused.value).startswith(message)
    megatron_write.write(tmp_path / "negative", [[1, 2], [3, -7]], dtype="int32")
    with pytest.raises(UserError, match=r"negative row 2: token -7, but small has a vocabulary of 2,048; choose"):
        prepare(RunConfig.of(data=f"text@{tmp_path / 'negative'}", **settings))


@pytest.mark.shared
def test_text_of_the_pile_in_another_column(shared: Path, tmp_path: Path, pythia_tokenizer: Path) -> None:
    """Real abstracts mixed with real instructions, 5 of each kind."""
    file = shared / "pile_nonmembers" / "pubmed_abstracts.ngram7.test_raw.jsonl.gz"
    (tmp_path / "pubmed.yaml").write_text(f"file: {file}\nschema: text\ncolumns: {{text: original}}\n")
    dolly = shared / "dolly" / "databricks-dolly-12k.jsonl"
    data = f"{tmp_path / 'pubmed.yaml'}:5,dolly@{dolly}:5"
    corpus = Corpus.open(prepare(RunConfig.of(data=data, corpora=str(tmp_path / "corpora"), holdout=0.0)))
    sets = corpus.sets(np.arange(corpus.n))
    assert corpus.set_names == ("pubmed", "dolly")
    assert (corpus.meta["kind"], int((sets == 1).sum())) == ("instruction", 5)
    abstracts = np.flatnonzero(sets == 0)
    assert np.array_equal(corpus.n_targets(abstracts), corpus.lengths(abstracts) - 1)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_line_feeds_next_to_separators_are_not_part_of_documents(tmp_path: Path, end: str) -> None:
    """Otherwise copies of a document would be other documents, on both sides of the holdout."""
    texts = ["A", f"  B{end}b ", "A", "C", "A"]
    path = tmp_path / "a.txt"
    path.write_bytes(f"<|endoftext|>{end}".join(texts).encode() + end.encode())
    documents = [document for _, _, document in raw.located(Source(name="a", paths=(path,)))]
    assert [each.document for each in documents if isinstance(each, Raw)] == texts
    corpus = Corpus.open(
        prepare(RunConfig.of(model="tiny", data=f"text@{path}", corpora=str(tmp_path / "corpora"), seq_len=16))
    )
    table = corpus.samples(["rows", "document", "split"]).to_pydict()
    assert len({*table["document"]}) == 3
    assert len({*zip(table["document"], table["split"], strict=True)}) == 3
    assert corpus.meta["counts"]["duplicates"] == 2
