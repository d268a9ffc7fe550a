"""Generations in the report: metrics of each checkpoint, and a slider over what it writes after the same prompts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.generations import prompts, texts
from eval.section import LONGEST_TEXT, TEXTS, Section, Table, cell, excerpt, slider
from wellread.units import plural

if TYPE_CHECKING:
    from wellread.results import Result
    from wellread.run import RunDirectory


def section(run: RunDirectory, results: Sequence[Result], heads: Sequence[str], rows: list[list[object]]) -> Section:
    """The section of a run whose results are `rows` below `heads`, one row per checkpoint, the step first."""
    from wellread.checkpoint import list_checkpoints

    steps, checkpoints = sorted({result.step for result in results}), list_checkpoints(run.checkpoints)
    written = {each.step: texts.kept_texts(run, each) for each in checkpoints if each.step in steps}
    ids = sorted({text.prompt_id for of_step in written.values() for text in of_step})
    first = _prompts(run, _some(ids, TEXTS // 2))
    panels = []
    for step, row in zip(steps, rows, strict=True):
        facts = list(zip(heads[1:], map(cell, row[1:]), strict=True))
        panels.append({"step": step, "facts": facts, "texts": list(_texts(first, written.get(step, [])))})
    counts = [result.n for result in results if result.group in texts.METHODS]
    command = f"wellread generations {shlex.quote(str(run.path))}"
    return Section(
        heading="Generations: what does each checkpoint write after the same prompts?",
        n=f"{max(counts, default=0):,} prompts from sealed samples, continued by {plural(len(rows), 'checkpoint')}; "
        f"{len(first)} of the prompts below, at most {LONGEST_TEXT} characters of each text.",
        help="No checkpoint has read the prompts or their true continuations; greedy texts differ only because the "
        "models differ, sampled ones also by chance.",
        **slider(panels, "Texts need a script; they are in the folder eval/generations of the run."),
        tables=[Table("Means over texts; bits per byte and perplexity of sealed samples", heads, rows)],
        commands=[("Continue the prompts at new checkpoints and write this page again", command)],
    )


def _some(ids: Sequence[int], count: int) -> list[int]:
    """At most `count` of the ids, evenly spaced."""
    if not ids:
        return []
    return [ids[place] for place in np.unique(np.linspace(0, len(ids) - 1, count).round().astype(int))]


def _prompts(run: RunDirectory, ids: Sequence[int]) -> list[tuple[int, str]]:
    """Id and beginning of these prompts."""
    from wellread.corpus.decoder import Decoder

    if not ids:
        return []
    decoder = Decoder.load(run.corpus / "tokenizer")
    selection = prompts.prompts_of(*prompts.samples_of(run), np.array(ids))
    return [(prompt.id, excerpt(decoder.decode(prompt.tokens))) for prompt in selection]


def _texts(first: Sequence[tuple[int, str]], written: Sequence[texts.Text]) -> Iterator[dict[str, str]]:
    """For each prompt its greedy and its sampled continuation."""
    by_prompt = {(text.prompt_id, text.method): text.text for text in written}
    for prompt_id, beginning in first:
        for method in texts.METHODS:
            if (text := by_prompt.get((prompt_id, method))) is not None:
                yield {"about": f"{method}, sample {prompt_id:,}: {beginning}", "text": excerpt(text)}
