"""Tokenizers: trained ones, real ones, and directories without one."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wellread.corpus.decoder import Decoder
from wellread.corpus.tokenizer import Tokenizer, copy_files, fingerprint, identify, train_bpe
from wellread.errors import UserError

TEXTS = ["the cat sat on the mat\n", "the dog sat on the log, ä ö ü\n"] * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bpe") / "tokenizer"
    train_bpe(TEXTS, 300, directory, 128)
    return directory


def test_training_merges_frequent_pairs_of_the_texts(trained: Path) -> None:
    tokenizer = Tokenizer.load(trained)
    assert (tokenizer.eos, tokenizer.size) == (
        0,
        278,
    )  # 256 bytes, end of text, and 21 merges; no other pair occurs twice
    (ids,) = tokenizer.continuations(["the cat"])
    assert tokenizer.backend.convert_ids_to_tokens(ids) == ["the", "Ġcat"]


def test_training_is_deterministic(trained: Path, tmp_path: Path) -> None:
    train_bpe(TEXTS, 300, tmp_path / "again", 128)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    assert fingerprint(tmp_path / "again") == fingerprint(trained)
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


@pytest.mark.parametrize(
    "text", ["the cat", "日本語 🙂", " two  spaces\n\n\ttabs ", "\x00\x7f", "", "NEVER seen: 0123"]
)
def test_any_text_is_decoded_to_itself(text: str, trained: Path) -> None:
    tokenizer = Tokenizer.load(trained)
    (ids,) = tokenizer.continuations([text])
    assert all(0 < i < 278 for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.prompts([text]) == [ids]  # a trained tokenizer adds no special tokens


def test_the_fingerprint_is_that_of_the_files(trained: Path, tmp_path: Path) -> None:
    copy_files(trained, tmp_path / "copy")
    assert {p.name for p in (tmp_path / "copy").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    (tmp_path / "copy" / "weights.bin").write_text("not of the tokenizer")
    assert fingerprint(tmp_path / "copy") == fingerprint(trained) == identify(trained, 300)
    with open(tmp_path / "copy" / "tokenizer_config.json", "a") as file:
        file.write(" ")
    assert fingerprint(tmp_path / "copy") != fingerprint(trained)
    assert identify(None, 2048) == "bpe-2048"


def test_directories_without_a_tokenizer(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r": no usable tokenizer \(.*\); put its tokenizer.json into this directory"):
        Tokenizer.load(tmp_path)
    shutil.copyfile(trained / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(UserError) as refused:
        Tokenizer.load(tmp_path)
    assert str(refused.value) == f"{tmp_path}: its tokenizer has no eos_token; set it in tokenizer_config.json"


@pytest.mark.shared
def test_pythia(pythia_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(pythia_tokenizer)
    assert (tokenizer.eos, tokenizer.size) == (0, 50277)
    assert tokenizer.prompts(["Hello world"]) == [[12092, 1533]]
    assert tokenizer.decode([12092, 1533, 0]) == "Hello world<|endoftext|>"
    assert tokenizer.begins == []
    assert tokenizer.prompts(["<|endoftext|>"]) == tokenizer.continuations(["<|endoftext|>"])
    assert 0 not in tokenizer.prompts(["<|endoftext|>"])[0]


@pytest.mark.shared
def test_llama_begins_samples_and_never_ends_prompts(shared: Path, tmp_path: Path) -> None:
    """`add_eos_token` would end the prompt before the response begins."""
    shutil.copyfile(shared / "tokenizers" / "llama2_tokenizer.model", tmp_path / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for ends in (False, True):
        config = settings | {"add_bos_token": True, "add_eos_token": ends}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer.load(tmp_path)
        assert (tokenizer.eos, tokenizer.size) == (2, 32000)
        assert tokenizer.prompts(["Hello world"]) == [[1, 15043, 3186]]
        assert tokenizer.begins == [1]
        # SentencePiece puts a space before a text, but a continuation follows its prompt
        (ids,) = tokenizer.continuations(["Hello world"])
        assert tokenizer.backend.convert_ids_to_tokens(ids) == ["Hello", "▁world"]
        assert tokenizer.decode(tokenizer.prompts(["Say:\n"])[0] + ids) == "<s> Say:\nHello world"


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (normalizers.Prepend("▁"), None),
        (normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁")]), None),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first")),
        (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)])),
    ],
)
def test_a_continuation_begins_without_a_space(normalizer: Any, pre_tokenizer: Any) -> None:
    backend = Backend(models.WordLevel({"a": 0, "▁a": 1, "Ġa": 2, "?": 3, "</s>": 4}, unk_token="?"))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert tokenizer.prompts(["a"]) in ([[1]], [[2]])
    assert tokenizer.continuations(["a"]) == [[0]]


def test_the_largest_id_counts_not_the_number_of_words(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"<eos>": 0, "a": 1, "b": 500}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path)
    assert len(Tokenizer.load(tmp_path).backend) == 3
    assert Tokenizer.load(tmp_path).size == 501


def test_a_tokenizer_that_draws_its_tokens_is_refused(trained: Path, tmp_path: Path) -> None:
    """With dropout, corpora of equal settings would differ."""
    copy_files(trained, tmp_path)
    serialized = json.loads((trained / "tokenizer.json").read_text())
    for dropout in (0.3, 0.0, None):
        serialized["model"]["dropout"] = dropout
        (tmp_path / "tokenizer.json").write_text(json.dumps(serialized))
        if not dropout:
            assert len({tuple(Tokenizer.load(tmp_path).prompts([TEXTS[0]])[0]) for _ in range(20)}) == 1
            continue
        with pytest.raises(UserError) as refused:
            Tokenizer.load(tmp_path, Path("mine"))
        message = (
            "mine: its tokenizer.json sets dropout to 0.3, so that a text has other tokens each time; set it to null"
        )
        assert str(refused.value) == message
        decoder = Decoder.load(tmp_path)  # of a run that exists
        assert len({tuple(decoder.encode(TEXTS[0])[0]) for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        ("<bos> $A <|endoftext|>", ["<bos>"], 1),
        ("<bos> $A <|eot_id|>", ["<bos>"], 1),
        ("<bos> <|endoftext|> $A <|endoftext|> <bos>", ["<bos>", "<|endoftext|>"], 2),
        ("<|eot_id|> $A", ["<|eot_id|>"], 0),
        ("$A <|eot_id|>", [], 1),
        ("$A", [], 0),
    ],
)
def test_special_tokens_after_a_text_are_not_between_prompt_and_response(
    form: str, before: list[str], after: int, trained: Path, tmp_path: Path
) -> None:
    """Any token that the post-processor appends, not only the end-of-sequence token."""
    names = ["<bos>", "<|endoftext|>", "<|eot_id|>"]
    backend = Backend.from_file(str(trained / "tokenizer.json"))
    backend.add_special_tokens(names)
    special = [(name, backend.token_to_id(name)) for name in names]
    backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eot_id|>").save_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    begins = [backend.token_to_id(name) for name in before]
    for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        (plain,) = each.continuations(["the cat"])
        assert each.begins == begins
        assert each.prompts(["the cat", ""]) == [begins + plain, begins]
        assert each.starts(["the cat"]) == [[0] * len(begins) + [0, 3]]
    assert len(backend.encode("the cat").ids) == len(begins) + 2 + after


def test_a_tokenizer_without_usual_characters_has_its_special_tokens() -> None:
    backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1, "日本": 2}, unk_token=None))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert tokenizer.begins == [0]
    assert tokenizer.prompts(["日本"]) == [[0, 2]]
