"""SentencePiece models: trained as llama2.c does, reproducibly; equal to SentencePiece and, saved, in transformers."""

from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from wellread.corpus import sentencepiece as pieces
from wellread.corpus.sentencepiece import Pieces
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.sources import generated
from wellread.errors import UserError

STORIES = [generated.story(i) for i in range(400)]
ODD = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text(alphabet="ab ▁\n\t\r09é漢😀.,'\"", max_size=12),
        st.sampled_from(["  ", " ", "\n\n", "▁", "<s>", "</s>", "<unk>", "<0x0A>", " the ", "\u3000", "e\u0301"]),
        st.sampled_from(" ".join(STORIES[:20]).split(" ")),
    ),
    max_size=8,
).map("".join)  # fmt: skip


def counted(texts: list[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for text in texts:
        pieces.count_words(words, text)
    return words


@pytest.fixture(scope="module")
def trained() -> Pieces:
    return Pieces(pieces.train(counted(STORIES), 1024))


@pytest.fixture(scope="module")
def models(trained: Pieces, request: pytest.FixtureRequest) -> dict[str, Pieces]:
    """One trained here, which merges several spaces; llama2.c's with 512 pieces; Llama 2's, which keeps spaces."""
    shared: Path = request.getfixturevalue("shared")
    files = {
        "tok512": shared / "stories260K" / "tok512.model",
        "llama2": shared / "tokenizers" / "llama2_tokenizer.model",
    }
    return {"trained_here": trained} | {name: Pieces(pieces.load(path)) for name, path in files.items()}  # fmt: skip


def processor(model: Pieces) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model.model)


def test_words_above_the_limit_of_sentencepiece_are_cut() -> None:
    """It skips words above 4,192 bytes, and those with U+2585, which separates words and is a piece of its own."""
    longest, longer, odd = "x" * 4192, "ж" * 2095 + "щю", "ы▅э"
    words = counted([f"{longest} {longer} {odd}"])
    assert words == {longest: 1, "ж" * 1048: 1, "ж" * 1047 + "щ": 1, "ю": 1, "ы": 1, "э": 1, "▅": 1}
    assert sum(len(word) * n for word, n in counted(["漢" * 5001]).items()) == 5001
    model = Pieces(pieces.train(counted([*STORIES, *[longer] * 20, odd]), 1024))
    encoder = processor(model)
    trained_pieces = {encoder.id_to_piece(i) for i in range(encoder.vocab_size())}
    assert set("жщюыэ") <= trained_pieces


def test_training_equals_that_of_llama2c(trained: Pieces) -> None:
    """The same words in another order give the same bytes; running text in lines gives the same pieces."""
    import io

    assert pieces.train(counted(STORIES[::-1]), 1024) == trained.model
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for story in STORIES for line in story.split("\n")), model_writer=model,
        model_type="bpe", vocab_size=1024, input_format="text", character_coverage=1.0, split_digits=True,
        allow_whitespace_only_pieces=True, byte_fallback=True, unk_surface=r" \342\201\207 ",
        normalization_rule_name="identity", num_threads=2, minloglevel=2,
    )  # fmt: skip
    expected, actual = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), processor(trained)
    assert actual.vocab_size() == 1024
    assert [actual.id_to_piece(i) for i in range(1024)] == [expected.id_to_piece(i) for i in range(1024)]
    assert (actual.bos_id(), actual.eos_id(), actual.pad_id(), actual.id_to_piece(13)) == (1, 2, -1, "<0x0A>")
    assert [
        p for p in map(actual.id_to_piece, range(259, 1024)) if any(map(str.isdigit, p)) and len(p.strip("▁")) > 1
    ] == []


@pytest.mark.shared
def test_pieces_of_real_stories(models: dict[str, Pieces], shared: Path, tmp_path: Path) -> None:
    text = (shared / "tinystories" / "train_head_2MiB.txt").read_text(errors="replace")
    texts = text.split("<|endoftext|>")[:800]
    for name, model in models.items():
        expected = processor(model).encode(texts)
        assert model.by_word
        for _ in range(2):  # with an empty cache and with a full one
            assert [model.encode(text).tolist() for text in texts] == expected
        model.save(tmp_path / name, 256)
        loaded = Tokenizer.load(tmp_path / name)
        assert (loaded.begins, loaded.size) == ([1], model.size)
        assert loaded.prompts(texts[:200]) == [[1, *ids] for ids in expected[:200]]
        assert loaded.decode(expected[5]) == processor(model).decode(expected[5])
        assert model.decode(model.encode(texts[5])) == processor(model).decode(expected[5])


@pytest.mark.shared
@settings(max_examples=300, deadline=None)
@given(text=ODD)
def test_pieces_of_odd_texts(models: dict[str, Pieces], text: str) -> None:
    for model in models.values():
        assert model.encode(text).tolist() == model._processor.encode(text)


def test_a_model_with_pieces_across_spaces_encodes_complete_texts() -> None:
    import io

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(STORIES), model_writer=model, model_type="bpe", vocab_size=600, byte_fallback=True,
        split_by_whitespace=False, minloglevel=2,
    )  # fmt: skip
    crossing = Pieces(model.getvalue())
    assert not crossing.by_word
    assert crossing.encode(STORIES[0]).tolist() == processor(crossing).encode(STORIES[0])


def test_the_cache_of_words_is_bounded(trained: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CACHED_WORDS", 50)
    model = Pieces(trained.model)
    assert [model.encode(story).tolist() for story in STORIES] == processor(trained).encode(STORIES)
    assert len(model._cache) < 300


def test_errors_of_training_and_reading(tmp_path: Path) -> None:
    for words, size, message in (
        (
            Counter(STORIES[0].split()),
            4096,
            r"--vocab 4096: larger than the text supports; choose at most \d+, or provide",
        ),
        (
            Counter(map(chr, range(0x4E00, 0x5000))),
            600,
            "--vocab 600: the text has more different characters than this",
        ),
    ):
        with pytest.raises(UserError, match=message):
            pieces.train(words, size)
    for size in (511, 32_001):
        with pytest.raises(UserError, match=f"--vocab {size}: a trained vocabulary has 512 to 32,000 pieces"):
            pieces.check_size(size)
    (tmp_path / "no.model").write_bytes(b"\x0a\x05hello")
    with pytest.raises(UserError, match=r"no\.model: not a SentencePiece model, or a damaged one"):
        pieces.load(tmp_path / "no.model")


def test_characters_without_a_piece_are_named() -> None:
    counts: Counter[str] = Counter()
    for story in STORIES:
        pieces.count_words(counts, f"{story} \u2585\u2585")
    model = pieces.train(counts, 600)
    assert pieces.without_piece(counts, model) == ["\u2585"]
    assert pieces.without_piece(counts + Counter({"\u4e00": 1}), model) == ["\u2585", "\u4e00"]
