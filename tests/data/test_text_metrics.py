"""Metrics of texts compared with values computed by hand, published values, and pattern.en's own results."""

from pathlib import Path

import numpy as np
import pytest

from wellread.data.text_metrics import NAMES, measure, read_words, syllables
from wellread.errors import UserError

PLATYPUS = "The Australian platypus is seemingly a hybrid of a mammal and reptilian creature."


def column(name: str, *texts: str) -> list[float]:
    values = measure(texts)[:, NAMES.index(name)]
    return [round(float(value), 4) for value in values]


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (1, "a made jumped played whole mole king eyes loved horse one goes shoes ice sale scared faced"),
        (2, "table little apple people wanted horses boxes needed castle houses wishes flower happy uncle"),
        (3, "beautiful everyone animal together dinosaur bicycle excited platypus"),
    ],
)
def test_syllables(n: int, words: str) -> None:
    assert [word for word in words.split() if syllables(word) != n] == []


def test_readability_by_hand() -> None:
    """13 words and 24 syllables: grade 11.3, as published for this sentence; six words of one syllable: -1.45."""
    assert column("flesch_kincaid", PLATYPUS, "The cat sat on the mat.") == [11.2646, -1.45]
    complex_words = 4  # Australian, platypus, seemingly (which does not end with -ing), reptilian
    assert column("gunning_fog", PLATYPUS) == [round(0.4 * (13 + 100 * complex_words / 13), 4)]
    assert column("gunning_fog", "She started jumping. They excited horses.") == [round(0.4 * 3, 4)]


def test_words_and_sentences() -> None:
    text = 'Mr. Fox said, "Don\'t go!" He paid 3.5 coins... and then the well-known'
    assert column("words", text) == [14]
    assert column("sentence_length", text, "No end", "One. Two? Three!") == [round(14 / 3, 4), 2, 1]
    assert column("type_token_ratio", "A cat, a CAT and a dog") == [round(4 / 7, 4)]
    assert not measure(["", " ... !", "\n"]).any()


def test_sentiment_follows_pattern() -> None:
    """Polarity and subjectivity of TextBlob 0.20 for the same texts."""
    texts = {
        "The food was good.": (0.7, 0.6),
        "The food was not good.": (-0.35, 0.6),
        "The food was very good!": (1.0, 0.78),
        "It wasn't a happy day.": (-0.4, 1.0),
        "A bad, sad and beautiful song": (-0.1166667, 0.8888889),
        "The cat sat on the mat.": (0.0, 0.0),
    }
    values = measure(list(texts))[:, 5:7]
    assert values == pytest.approx(np.array(list(texts.values())), abs=1e-4)
    assert not measure(list(texts), sentiment=False)[:, 5:].any()


def test_word_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\ufeff# scary\nWolf\n\ndon’t\n")
    words = read_words(tmp_path / "list.txt")
    assert words == ["wolf", "don't"]
    assert measure(["The wolf: I don't like wolf or dog."], words=words)[0, 7] == np.float32(3 / 8)
    for content, message in {"two words": "line 1: 'two words' is not a single word", "#": "contains no words"}.items():
        (tmp_path / "list.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            read_words(tmp_path / "list.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_words(tmp_path / "gone.txt")
