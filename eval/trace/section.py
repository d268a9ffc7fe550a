"""Trace in the report: what the last checkpoint wrote, traced to the batches where it was read, next to true texts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.generations import prompts, texts
from eval.generations.spans import SHORTEST
from eval.intervals import clustered_mean, linearized
from eval.kept_table import settings_in
from eval.section import Section, Table, excerpt
from wellread.record.trace import Span, covered
from wellread.units import plural

if TYPE_CHECKING:
    from eval.generations.prompts import Prompt
    from eval.report.facts import Facts
    from wellread.checkpoint import Checkpoint
    from wellread.record.trace import Tracer

TEMPLATE = Path(__file__).with_name("section.html.j2")
TRUE = "true continuation"
TEXTS = 6
"""Texts that are displayed with their spans."""
SPANS = 20
"""Spans that are listed."""
WIDEST = 80
"""Characters of a span in the list."""
HEADS = ("span", "tokens", "occurrences", "sample", "row", "readings", "first batch", "last batch", "loss")


@dataclass(frozen=True, eq=False)
class Traced:
    """A text, and the spans of it that the checkpoint has read."""

    prompt: Prompt
    text: str
    spans: Sequence[Span]
    n_tokens: int

    @cached_property
    def n_covered(self) -> int:
        """Tokens that are in a span."""
        return covered([span.match for span in self.spans], self.n_tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest span; 0 without one."""
        return max((span.match.stop - span.match.first for span in self.spans), default=0)


def section(facts: Facts, before: Sequence[Section]) -> Section | None:
    """The texts of the last checkpoint; None if it has written none (``wellread generations RUN``)."""
    written = texts.kept_texts(facts.run, facts.checkpoints[-1]) if facts.checkpoints else []
    if not written:
        return None

    from wellread.record.index import SCANNED, usable_index
    from wellread.record.opened import Run
    from wellread.record.trace import Tracer

    run, checkpoint = Run(facts.run), facts.checkpoints[-1]
    index, _ = usable_index(run.corpus, str(run.path))
    if index is None and int(run.corpus.offsets[-1]) > SCANNED:
        return _without_index(facts, checkpoint)
    tracer = Tracer.of(run, checkpoint.step, index)
    return _section(facts, checkpoint, tracer, _traced(facts, tracer, written))


def _traced(facts: Facts, tracer: Tracer, written: Sequence[texts.Text]) -> dict[str, list[Traced]]:
    """Method -> its texts; and the true continuation of each prompt, cut to what a text may have."""
    ids = np.unique([text.prompt_id for text in written])
    selection = {prompt.id: prompt for prompt in prompts.prompts_of(*prompts.samples_of(facts.run), ids)}
    longest = int(settings_in(texts.path(facts.run, facts.checkpoints[-1]))["new_tokens"])
    special = tracer.decoder.special_ids
    rows = [(text.method, selection[text.prompt_id], text.text) for text in written]
    for prompt in selection.values():
        tokens = [token for token in prompt.reference[:longest] if token not in special]
        rows.append((TRUE, prompt, tracer.decoder.decode(tokens)))
    groups: dict[str, list[Traced]] = {}
    spans = tracer.traces([text for _, _, text in rows], SHORTEST)
    for (group, prompt, text), (of, n_tokens) in zip(rows, spans, strict=True):
        groups.setdefault(group, []).append(Traced(prompt, text, of, n_tokens))
    return groups


def _section(facts: Facts, checkpoint: Checkpoint, tracer: Tracer, groups: dict[str, list[Traced]]) -> Section:
    greedy = sorted(groups.get(texts.GREEDY, []), key=lambda each: (-each.longest, each.prompt.id))
    examples = [each for each in greedy if each.spans][:TEXTS]
    words = f"{len(examples)} of {len(greedy)} greedy texts, those with the longest spans, which are underlined"
    return Section(
        heading="Trace: where did the last checkpoint read what it writes?",
        n=f"{plural(len(groups[TRUE]), 'prompt')} at step {checkpoint.step:,}; "
        + (f"below, {words}." if examples else "no span."),
        help=f"A span is at least {SHORTEST} tokens that follow each other in one sample that was read. Overlap means "
        "something only if it differs from that of the true continuations, which no checkpoint has read.",
        template=TEMPLATE.read_text(encoding="utf-8"),
        values={"texts": [_example(tracer, each) for each in examples]},
        tables=[
            Table(
                f"Tokens in spans of at least {SHORTEST} tokens that were read",
                ("texts of", "texts", "tokens", "in spans", "from", "to", "longest span"),
                [_coverage(name, group) for name, group in groups.items()],
            ),
            Table(
                "Longest spans of greedy texts, each with the sample of its first reading; loss: when it was read",
                HEADS,
                _longest(tracer, greedy),
            ),
        ],
        commands=_commands(facts, checkpoint, examples),
    )


def _coverage(name: str, group: Sequence[Traced]) -> list[object]:
    """Share of tokens in spans with its interval, clustered by document: a ratio, linearized in each text."""
    inside, tokens = (np.array([getattr(each, of) for each in group], float) for of in ("n_covered", "n_tokens"))
    longest = max(each.longest for each in group)
    counts: list[object] = [name, len(group), int(tokens.sum())]
    if not tokens.sum():
        return [*counts, None, None, None, longest]
    row = clustered_mean(linearized(inside, tokens), np.array([each.prompt.document for each in group]))
    ends = [min(max(row[end], 0.0), 1.0) if end in row else None for end in ("ci_low", "ci_high")]
    return [*counts, row["value"], *ends, longest]


def _longest(tracer: Tracer, greedy: Sequence[Traced]) -> list[list[object]]:
    """The longest spans of texts, each text once, by length."""
    spans = {span.text: span for each in greedy for span in each.spans}
    ordered = sorted(spans.values(), key=lambda span: (span.match.first - span.match.stop, span.text))[:SPANS]
    rows: list[list[object]] = []
    for span, of in zip(ordered, tracer.objects(ordered), strict=True):
        readings, first = of["readings"], of["readings"][0]
        place = f"{first['source']}:{','.join(map(str, np.atleast_1d(first['row'])))}"
        length, sample = span.match.stop - span.match.first, f"{first['sample_id']:,}"
        batches = [first["batch"], readings[-1]["batch"]]
        text = span.text.replace("\n", "⏎")
        text = text if len(text) <= WIDEST else f"{text[:WIDEST]}…"
        rows.append([text, length, of["count"], sample, place, len(readings), *batches, first["loss"]])
    return rows


def _example(tracer: Tracer, each: Traced) -> dict[str, Any]:
    """A text cut into pieces that are in a span or not, and what it continues."""
    beginning = excerpt(tracer.decoder.decode(each.prompt.tokens))
    return {"about": f"sample {each.prompt.id:,}: {beginning}", "pieces": pieces(each)}


def pieces(each: Traced) -> list[tuple[str, bool]]:
    """The beginning of a text in pieces, with whether each is in a span."""
    text = excerpt(each.text)
    inside = np.zeros(len(text) + 1, dtype=bool)
    for span in each.spans:
        inside[span.start : min(span.end, len(text))] = True
    bounds = [0, *(np.flatnonzero(inside[1:-1] != inside[:-2]) + 1).tolist(), len(text)]
    return [(text[a:b], bool(inside[a])) for a, b in pairwise(bounds) if b > a]


def _without_index(facts: Facts, checkpoint: Checkpoint) -> Section:
    """The section about a corpus that is too large to be scanned for each report."""
    path = shlex.quote(str(facts.run.path))
    return Section(
        heading="Trace: where did the last checkpoint read what it writes?",
        n=f"Texts of step {checkpoint.step:,}, not traced.",
        help="The corpus is too large for a scan and has no index that can be used; write one, and this page again.",
        commands=[
            ("Index the corpus, so that texts are traced", f"wellread index {path} && wellread report {path}"),
        ],
    )


def _commands(facts: Facts, checkpoint: Checkpoint, examples: Sequence[Traced]) -> list[tuple[str, str]]:
    if not examples:
        return []
    span = max(examples[0].spans, key=lambda span: span.match.stop - span.match.first)
    words = shlex.join([str(facts.run.path), span.text, "--checkpoint", str(checkpoint.step)])
    words += f" --min {SHORTEST}"
    return [("List all readings of a span", f"wellread trace {words}")]
