"""What the report shows of generations."""

from __future__ import annotations

import shutil

import pyarrow.parquet as pq

from eval.generations import texts
from eval.generations.evaluation import Generations
from wellread.checkpoint import list_checkpoints
from wellread.corpus.tokenizer import Tokenizer
from wellread.results import Result
from wellread.run import RunDirectory


def test_the_section_shows_kept_texts(written: tuple[RunDirectory, list[Result]]) -> None:
    run, results = written
    section = Generations.section(run, results)
    assert section is not None
    assert section.n.startswith("6 prompts from sealed samples, continued by 4 checkpoints; 4 of the prompts below")
    last = list_checkpoints(run.checkpoints)[-1]
    stored = pq.read_table(texts.path(run, last)).to_pylist()
    ids = sorted({row["prompt_id"] for row in stored})
    expected = [
        row["text"] for i in (0, 2, 3, 5) for row in sorted(stored, key=lambda row: row["method"]) if
        row["prompt_id"] == ids[i]
    ]  # fmt: skip
    panel = section.data[-1]
    assert [text["text"] for text in panel["texts"]] == expected
    prompt = Generations(run, prompts=6, new_tokens=12, max_samples=10).fixed_prompts[0]
    start = f"greedy, sample {prompt.id:,}: {Tokenizer.load(run.corpus / 'tokenizer').decode(prompt.tokens)}"
    assert panel["texts"][0]["about"][:200] == start[:200]
    assert dict(panel["facts"])["words"] == f"{section.tables[0].rows[-1][6]:.4g}"
    assert [panel["step"] for panel in section.data] == [0, 4, 8, 12]


def test_texts_of_other_weights_are_not_shown(
    copy_of_written: RunDirectory, written: tuple[RunDirectory, list[Result]]
) -> None:
    first, last = (list_checkpoints(copy_of_written.checkpoints)[place] for place in (0, -1))
    shutil.copy(texts.path(copy_of_written, last), texts.path(copy_of_written, first))
    section = Generations.section(copy_of_written, written[1])
    assert section is not None
    assert [len(panel["texts"]) for panel in section.data] == [0, 8, 8, 8]


def test_no_results_no_section(written: tuple[RunDirectory, list[Result]]) -> None:
    assert Generations.section(written[0], []) is None
