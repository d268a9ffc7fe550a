"""``wellread index`` and ``wellread trace``, as a user runs them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.trace.command import underlined
from eval.trace.control import losses_now, sealed_coverage
from wellread import open_run
from wellread.__main__ import main
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.record.history import History
from wellread.record.index import TooManyPlaces
from wellread.record.trace import Match, Tracer, covered
from wellread.record.verify import verify
from wellread.run import RunDirectory

Answer = Callable[..., str]
OFTEN = "\n\n### Response:\n"
"""A text that many samples contain."""


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """What a command that succeeds prints on stdout."""

    def ask(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return ask


def refusal(*words: object) -> str:
    with pytest.raises(UserError) as error:
        main([str(word) for word in words])
    return str(error.value)


@pytest.fixture
def text(history: History, corpus: Corpus) -> str:
    """A sample that is read in batch 5, without its end-of-sequence token."""
    assert history.tokenizer is not None
    return history.tokenizer.decode(corpus.tokens(int(history.order.batch(5)[3]))[:-1].tolist())


def objects(printed: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in printed.splitlines()]


# --- index


def test_an_index_is_written_kept_and_replaced(
    copied_run: RunDirectory, answer: Answer, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied_run.path
    scanned = answer("trace", run, text, "--jsonl", "-")
    file = copied_run.corpus.resolve() / "tokens.sa"
    assert answer("index", run) == f"wrote {file}: 102,082 tokens, 816,656 bytes\n"
    assert answer("index", run) == f"{file}: valid, 102,082 tokens\n"
    assert answer("index", copied_run.corpus) == f"{file}: valid, 102,082 tokens\n"
    assert verify(copied_run) == []
    assert answer("trace", run, text, "--jsonl", "-") == scanned

    content = bytearray(file.read_bytes())
    content[8:16], content[80:88] = content[80:88], content[8:16]
    file.write_bytes(content)
    assert verify(copied_run) == [f"{file}: damaged; remove it and tokens.sa.json, or run wellread index"]
    assert main(["trace", str(run), text, "--jsonl", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.out == scanned
    assert printed.err == f"{file}: damaged; scanning 102,082 tokens instead; run wellread index {run}\n"
    line = f"wrote {file}: 102,082 tokens, 816,656 bytes; the previous one was unusable: damaged\n"
    assert answer("index", run) == line
    assert verify(copied_run) == []


def test_what_cannot_be_indexed(tmp_path: Path) -> None:
    assert refusal("index", tmp_path) == refusal("read", tmp_path)
    (tmp_path / "x.idx").write_bytes(b"no")
    assert "x.idx: not a Megatron index" in refusal("index", tmp_path / "x")


# --- trace


def test_a_sample_is_traced_to_its_reading(tiny_run: RunDirectory, answer: Answer, text: str, corpus: Corpus) -> None:
    sample_id = int(open_run(tiny_run.path).order.batch(5)[3])
    row = corpus.samples().slice(sample_id, 1).to_pylist()[0]
    (span,) = objects(answer("trace", tiny_run.path, text, "--jsonl", "-"))
    assert (span["text"], span["start"], span["end"], span["count"]) == (text.strip(), 0, len(text.strip()), 1)
    (reading,) = span["readings"]  # type: ignore[misc]
    place = {"sample_id": sample_id, "source": "sample", "row": row["rows"][0], "batch": 5, "step": 6, "slot": 3}
    loss = open_run(tiny_run.path).record.table(["loss"], (5, 6))["loss"][3].as_py()
    assert reading == place | {"loss": loss, "loss_now": None}
    printed = answer("trace", tiny_run.path, text)
    assert printed.startswith(f"span 1  characters 0-{len(text.strip())}  1 occurrence, 1 reading\n")
    assert f"{sample_id}  sample:{row['rows'][0]}" in printed
    assert "step-12 has read 1 span of at least 6 tokens: 100.0% of the " in printed
    assert "true continuations, which it has not read" in printed


def test_a_later_reading_is_not_reported(tiny_run: RunDirectory, answer: Answer, text: str) -> None:
    for step in (0, 4):
        for span in objects(answer("trace", tiny_run.path, text, "--checkpoint", step, "--jsonl", "-")):
            assert span["end"] - span["start"] < len(text) / 2  # type: ignore[operator]
            assert all(each["batch"] < step for each in span["readings"])  # type: ignore[attr-defined]
    assert answer("trace", tiny_run.path, text, "--checkpoint", "step-0", "--jsonl", "-") == ""
    assert answer("trace", tiny_run.path, text, "--checkpoint", "step-0").startswith(
        "step-0 has read 0 spans of at least 6 tokens: 0.0% of the "
    )


def test_a_text_from_a_file_or_standard_input(
    tiny_run: RunDirectory, answer: Answer, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer("trace", tiny_run.path, text, "--jsonl", "-")
    (tmp_path / "text").write_text(text)
    assert answer("trace", tiny_run.path, tmp_path / "text", "--jsonl", "-") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert answer("trace", tiny_run.path, "-", "--jsonl", "-") == expected
    printed = answer("trace", tiny_run.path, text, "--jsonl", tmp_path / "out.jsonl")
    assert printed.startswith(f"wrote {tmp_path / 'out.jsonl'}: 1 span\nstep-12 has read 1 span")
    assert (tmp_path / "out.jsonl").read_text() == expected


def test_mistakes(tiny_run: RunDirectory, tmp_path: Path) -> None:
    run = tiny_run.path
    (tmp_path / "binary").write_bytes(b"\xff text")
    assert refusal("trace", run, "a b") == "TEXT: 2 tokens, fewer than --min 6; give a longer text or a lower --min"
    assert refusal("trace", run, "").startswith("TEXT: 0 tokens, fewer than --min 6")
    assert refusal("trace", run, "a b c", "--min", 0) == "--min 0: must be at least 1"
    assert refusal("trace", run, tmp_path / "binary").startswith(f"{tmp_path / 'binary'}: not UTF-8 at byte 0")
    assert refusal("trace", run, "a \udcff b c d e f g h").startswith(r"'a \udcff b c d e f g h': is not UTF-8; ")
    assert "step-5" in refusal("trace", run, "word " * 20, "--checkpoint", "step-5")
    for name in ("answer.txt", "notes.md", "no/such/answer"):
        assert refusal("trace", run, name).startswith(f"{name}: no such file; to trace these words as a text, pass - ")
    assert refusal("trace", run, "and/or this").startswith("TEXT: ")  # white space: a text
    assert "expected a step" in refusal("trace", run, "word " * 20, "--checkpoint", "x")
    assert refusal("trace", tmp_path, "word") == refusal("read", tmp_path)


def test_a_run_without_checkpoints(copied_run: RunDirectory) -> None:
    shutil.rmtree(copied_run.checkpoints)
    copied_run.checkpoints.mkdir()
    assert "no checkpoint yet" in refusal("trace", copied_run.path, "word " * 20)


def test_overlapping_parts_are_underlined_once() -> None:
    line = underlined("a bc\x1b def", [(2, 4), (3, 7), (3, 4)])
    assert line == "a \x1b[4mbc\x1b[0m\x1b[4m\\x1b d\x1b[0mef"
    assert underlined("abc", []) == "abc"


def test_coverage_by_hand() -> None:
    no = np.empty(0, dtype=np.int64)
    assert covered([Match(2, 5, no), Match(4, 6, no), Match(8, 9, no)], 10) == 5
    assert covered([], 10) == 0


def test_the_control_traces_sealed_samples(tiny_run: RunDirectory, corpus: Corpus) -> None:
    """Compared with a search for each window of the answers of all sealed samples."""
    run = open_run(tiny_run.path)
    tracer = Tracer.of(run, 12, None)
    read = ["".join(map(chr, corpus.tokens(i))) for i in np.unique(run.record.sample_ids())]
    inside = total = n_answers = 0
    for i in range(corpus.n_trainable, corpus.n):
        answer = "".join(map(chr, corpus.tokens(i)[corpus.targets(i)]))[:20]
        if len(answer) < 4:
            continue
        covered_places = {
            k + j for k in range(len(answer) - 3) if any(answer[k : k + 4] in each for each in read) for j in range(4)
        }
        inside, total, n_answers = inside + len(covered_places), total + len(answer), n_answers + 1
    assert sealed_coverage(tracer, 20, 4) == (inside / total, n_answers)
    assert 0.05 < inside / total < 0.9
    assert sealed_coverage(tracer, 300, 300) is None


@pytest.mark.slow
def test_the_loss_now_is_that_of_the_next_batch(copied_run: RunDirectory, text: str, answer: Answer) -> None:
    """The record has the losses of batch 4 under the weights of step 4."""
    run = open_run(copied_run.path)
    checkpoint = run.history.checkpoint("4")
    assert run.history.checkpoint("last") == run.history.checkpoints[-1]
    rows = run.record.table(["sample_id", "loss"], (4, 5)).to_pylist()
    ids = np.sort([row["sample_id"] for row in rows])
    losses = losses_now(copied_run, checkpoint, run.corpus, ids)
    assert [losses[row["sample_id"]] for row in rows] == pytest.approx([row["loss"] for row in rows], rel=0.01)
    (span,) = objects(answer("trace", copied_run.path, text, "--loss_now", "--jsonl", "-"))
    (reading,) = span["readings"]  # type: ignore[misc]
    sample_id = int(run.order.batch(5)[3])
    (expected,) = losses_now(copied_run, run.history.checkpoint("12"), run.corpus, np.array([sample_id])).values()
    assert reading["loss_now"] == pytest.approx(expected)
    assert reading["loss_now"] < reading["loss"]


def test_the_readings_of_a_span_are_cut_off(
    tiny_run: RunDirectory, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = objects(answer("trace", tiny_run.path, OFTEN, "--min", 1, "--jsonl", "-"))
    numbers = [len(each["readings"]) for each in complete]  # type: ignore[arg-type]
    assert max(numbers) > 1
    assert main(["trace", str(tiny_run.path), OFTEN, "--min", "1", "--limit", "1", "--jsonl", "-"]) == 0
    printed = capsys.readouterr()
    assert [each["readings"] for each in objects(printed.out)] == [each["readings"][:1] for each in complete]  # type: ignore[index]
    assert [each["count"] for each in objects(printed.out)] == [each["count"] for each in complete]
    assert printed.err.splitlines() == [
        f"span {number}: cut off at --limit 1 of {n:,} readings; raise --limit to list more"
        for number, n in enumerate(numbers, 1)
        if n > 1
    ]
    assert refusal("trace", tiny_run.path, OFTEN, "--limit", 0) == "--limit 0: must be at least 1"


def test_a_file_has_all_readings_unless_a_limit_is_given(
    tiny_run: RunDirectory, answer: Answer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of the printed list does not hold for --jsonl."""
    complete = objects(answer("trace", tiny_run.path, OFTEN, "--min", 1, "--jsonl", "-"))
    numbers = [len(each["readings"]) for each in complete]  # type: ignore[arg-type]
    assert max(numbers) > 3
    monkeypatch.setattr("eval.trace.command.LIMIT", 2)
    assert main(["trace", str(tiny_run.path), OFTEN, "--min", "1", "--jsonl", "-"]) == 0
    printed = capsys.readouterr()
    assert (objects(printed.out), printed.err) == (complete, "")
    assert main(["trace", str(tiny_run.path), OFTEN, "--min", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count(": cut off at --limit 2 of ") == sum(n > 2 for n in numbers)
    assert ", 2 readings\n" in printed.out
    assert f", {max(numbers)} readings\n" not in printed.out
    assert main(["trace", str(tiny_run.path), OFTEN, "--min", "1", "--limit", "3", "--jsonl", "-"]) == 0
    assert [len(each["readings"]) for each in objects(capsys.readouterr().out)] == [min(3, n) for n in numbers]  # type: ignore[arg-type]


def test_the_control_is_counted_in_parts(tiny_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of all texts at once are too many, those of a few are not."""
    tracer = Tracer.of(open_run(tiny_run.path), 12, None)
    expected, calls = sealed_coverage(tracer, 30, 2), list[int]()
    matches = Tracer._matches

    def counted(self: Tracer, texts: Sequence[NDArray[Any]], least: int) -> list[list[Match]]:
        calls.append(len(texts))
        if len(texts) > 20:
            raise TooManyPlaces("too many")
        return matches(self, texts, least)

    monkeypatch.setattr(Tracer, "_matches", counted)
    assert sealed_coverage(tracer, 30, 2) == expected
    assert max(calls) > 20 >= min(calls)
