"""The included instruction data set: size, schema, categories, and that its texts do not come from templates."""

import json
import re
from collections import Counter, defaultdict

import pytest

from wellread.config import CONFIGS
from wellread.data.rows.instruct import SCHEMAS, dialogues
from wellread.data.sources.source import Row, Source

CATEGORIES = {
    "brainstorming", "classification", "closed_qa", "creative_writing", "general_qa", "information_extraction",
    "open_qa", "summarization",
}  # fmt: skip
TEXTS = ("instruction", "context", "response")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    lines = (CONFIGS / "data" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def test_size_and_schema(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 600
    assert {tuple(row) for row in rows} == {("instruction", "context", "response", "category")}
    assert {type(value) for row in rows for value in row.values()} == {str}
    parsed = [dialogues(Row(1, row), SCHEMAS["dolly"], Source(name="sample")) for row in rows]
    assert all(isinstance(result, list) for result in parsed)
    assert not [row for row in rows if not row["response"].strip()]


def test_all_eight_categories_of_dolly(rows: list[dict[str, str]]) -> None:
    counts = Counter(row["category"] for row in rows)
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= len(rows) // 20, counts


def test_contexts_exist_exactly_where_the_category_needs_them(rows: list[dict[str, str]]) -> None:
    for category in ("closed_qa", "information_extraction", "summarization"):
        without = [row["instruction"] for row in rows if row["category"] == category and not row["context"].strip()]
        assert not without, category
    for category in ("open_qa", "general_qa", "brainstorming"):
        with_context = [row["instruction"] for row in rows if row["category"] == category and row["context"].strip()]
        assert not with_context, category


def test_no_row_twice(rows: list[dict[str, str]]) -> None:
    for of in (lambda r: json.dumps(r), lambda r: " ".join(words(r["instruction"] + " | " + r["context"]))):
        again = [text for text, count in Counter(map(of, rows)).items() if count > 1]
        assert not again
    responses = Counter(" ".join(words(row["response"])) for row in rows if len(words(row["response"])) >= 8)
    assert not [text for text, count in responses.items() if count > 1]


def test_no_phrase_in_more_than_one_percent_of_the_rows(rows: list[dict[str, str]]) -> None:
    """Texts from templates would repeat sequences of 8 words; the largest share is printed."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for number, row in enumerate(rows, start=1):
        for name in TEXTS:
            text = words(row[name])
            for i in range(len(text) - 7):
                numbers[" ".join(text[i : i + 8])].add(number)
    phrase, where = max(numbers.items(), key=lambda item: (len(item[1]), item[0]))
    share = len(where) / len(rows)
    print(f"most frequent 8-word sequence: {phrase!r} in {len(where)} of {len(rows)} rows ({share:.2%})")
    assert share <= 0.01, f"{phrase!r} in rows {sorted(where)}"


def test_texts_are_clean(rows: list[dict[str, str]]) -> None:
    for number, row in enumerate(rows, start=1):
        for name in TEXTS:
            text = row[name]
            assert text == text.strip(), f"row {number}: whitespace around its {name}"
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f\ufeff\ufffd]", text), f"row {number}: control characters"
            assert "<|" not in text, f"row {number}: a special token"


def test_lengths_vary(rows: list[dict[str, str]]) -> None:
    """Answers have different lengths, and instructions many first words (a sixth are question words, as in Dolly)."""
    lengths = sorted(len(words(row["response"])) for row in rows)
    assert lengths[len(rows) // 10] < 25
    assert lengths[-len(rows) // 10] > 80
    first = Counter(words(row["instruction"])[0] for row in rows)
    assert first.most_common(1)[0][1] <= len(rows) // 5, first.most_common(3)
    assert len(first) >= 60
