"""What the report traces: a text that is a copy of a sample, with hostile text around it."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.generations import texts
from eval.report.facts import Facts
from eval.report.page import write
from eval.trace import section as traces
from wellread import open_run
from wellread.checkpoint import list_checkpoints
from wellread.run import RunDirectory

pytestmark = pytest.mark.long
BATCH, SLOT = 5, 3


def test_a_copied_sample_is_traced_to_its_batch(copy_of_written: RunDirectory) -> None:
    run = open_run(copy_of_written.path)
    sample_id = int(run.order.batch(BATCH)[SLOT])
    copied = run.tokenizer.decode(run.corpus.tokens(sample_id)[:-1].tolist())
    file = texts.path(copy_of_written, list_checkpoints(copy_of_written.checkpoints)[-1])
    table = pq.read_table(file)
    rows = table.to_pylist()
    first = next(row for row in rows if row["method"] == texts.GREEDY)
    for row in rows:
        row["text"] = copied if row is first else "<script>zq</script>"
    pq.write_table(table.from_pylist(rows, schema=table.schema), file)

    section = traces.section(Facts.of(copy_of_written), [])
    assert section is not None
    coverage, longest = section.tables
    length = len(run.tokenizer.encode(copied)[0])
    other = len(run.tokenizer.encode("<script>zq</script>")[0])
    greedy, sampled, true = coverage.rows
    assert greedy[:3] == ["greedy", 6, length + 5 * other]
    assert greedy[3] == pytest.approx(length / (length + 5 * other))
    assert (greedy[6], sampled[3]) == (length, 0)
    assert (true[0], true[1]) == (traces.TRUE, 6)
    span, size, count, sample, _, readings, begin, end, loss = longest.rows[0]
    assert (size, count, sample, readings, begin, end) == (length, 1, f"{sample_id:,}", 1, BATCH, BATCH)
    assert str(span).rstrip("…") == copied.replace("\n", "⏎")[: traces.WIDEST]
    assert loss == run.record.table(["loss"], (BATCH, BATCH + 1))["loss"][SLOT].as_py()
    assert section.values["texts"][0]["pieces"][0][1]

    page = write(copy_of_written).read_text(encoding="utf-8")
    assert "<script>zq" not in page
    assert '<h2 id="trace">Trace: where did the last checkpoint read what it writes?</h2>' in page
    assert "<mark>" in page


def test_true_continuations_are_traced_as_trace_does(copy_of_written: RunDirectory) -> None:
    facts = Facts.of(copy_of_written)
    section = traces.section(facts, [])
    assert section is not None
    from eval.generations.prompts import draw, prompts_of, samples_of
    from wellread.record.trace import Tracer, covered

    run = open_run(copy_of_written.path)
    samples, documents = samples_of(copy_of_written)
    tracer = Tracer.of(run, 12, None)
    inside = total = 0
    for prompt in prompts_of(samples, documents, draw(samples, 6, 0)):
        tokens = [token for token in prompt.reference[:12] if token not in run.tokenizer.special_ids]
        spans, n_tokens = tracer.trace(run.tokenizer.decode(tokens), traces.SHORTEST)
        inside, total = inside + covered([span.match for span in spans], n_tokens), total + n_tokens
    true = section.tables[0].rows[-1]
    assert (true[2], true[3]) == (total, pytest.approx(inside / total))
    assert np.isfinite(true[3])


def test_texts_of_other_weights_are_not_traced(copy_of_written: RunDirectory) -> None:
    first, *_, last = list_checkpoints(copy_of_written.checkpoints)
    texts.path(copy_of_written, last).write_bytes(texts.path(copy_of_written, first).read_bytes())
    assert traces.section(Facts.of(copy_of_written), []) is None


def test_a_large_corpus_without_an_index(copy_of_written: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wellread.record.index.SCANNED", 10)
    section = traces.section(Facts.of(copy_of_written), [])
    assert section is not None
    assert not section.tables
    assert "wellread index" in section.commands[0][1]
