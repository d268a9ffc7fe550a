"""Table of the sections about the run, before and after those of the evaluations.

To add one, write a function of `Facts` and the sections before it that returns a `Section`, or None when the run has
nothing to show, and list it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from eval.registry import evaluations
from eval.report.facts import Facts
from eval.section import Section

FIRST = {
    "run": "eval.report.sections.what_ran:section",
    "curves": "eval.report.sections.curves:section",
    "reading": "eval.report.sections.reading:section",
}
LAST = {
    "trace": "eval.trace.section:section",
    "corpus": "eval.report.sections.corpus:section",
    "checkpoints": "eval.report.sections.checkpoints:section",
}


def sections_of(facts: Facts) -> dict[str, Section | None]:
    """Name -> section, in the order of the page; None for an evaluation that was not run."""
    sections: dict[str, Section | None] = dict(_sections(FIRST, facts, []))
    for kind in evaluations():
        if kind.applies(facts.run):
            sections[kind.name] = kind.section(facts.run, kind.stored(facts.run))
    before = [section for section in sections.values() if section]
    return sections | dict(_sections(LAST, facts, before))


def _sections(table: dict[str, str], facts: Facts, before: list[Section]) -> Iterator[tuple[str, Section]]:
    for name, place in table.items():
        module, _, function = place.partition(":")
        if section := getattr(import_module(module), function)(facts, before):
            yield name, section
