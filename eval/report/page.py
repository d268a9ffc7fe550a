"""Report of one or several runs: what they read, their checkpoints, results of evaluations. Run with

    wellread report RUN [RUN2 …]

The page needs nothing but itself: the script that draws the figures is in it, and its Content-Security-Policy forbids
every request. All text of a run is escaped in HTML, or JSON that only `textContent` shows. Each section is a function
and a template: `eval/report/sections/` about the run, `Evaluation.section` about an evaluation.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.report.facts import Facts
from eval.report.script import as_json, bundle, for_page, palette
from eval.report.sections.registry import sections_of
from eval.report.sections.together import section as together
from eval.section import Picture, Section, cell
from wellread.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Environment

    from wellread.run import RunDirectory

FOLDER = Path(__file__).parent
MOST_RUNS = 7
"""Runs on one page: their curves must be distinguishable."""


def write(run: RunDirectory, *more: RunDirectory) -> Path:
    """Write the report of a run, or of several, below the directory of the first; return its path.

    Raises
    ------
    UserError
        When a run has no record or no corpus, a result table cannot be read, or there are too many runs.
    """
    from wellread.files import write_atomic
    from wellread.plots.figure import unchecked

    runs = [run, *more]
    if len({each.path.resolve() for each in runs}) < len(runs):
        raise UserError("report: a run is named twice; name each run once")
    if len(runs) > MOST_RUNS:
        raise UserError(f"report: {len(runs)} runs; at most {MOST_RUNS} fit on one page")
    path = run.report / ("together.html" if more else "index.html")
    with unchecked():
        page = Page(runs).html()
    run.refuse_links()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)
    return path


class Page:
    """The page of several runs, with the figures and data that its script needs."""

    def __init__(self, runs: Sequence[RunDirectory]) -> None:
        self._runs = runs
        self._environment = _environment()
        self._figures: list[dict[str, Any]] = []
        self._data: list[Any] = []

    def html(self) -> str:
        """The complete page."""
        facts = [Facts.of(run) for run in self._runs]
        names = _names(self._runs)
        prefixes = [f"run-{i}-" if len(facts) > 1 else "" for i in range(1, len(facts) + 1)]
        runs = [self._run(*each) for each in zip(facts, names, prefixes, strict=True)]
        return self._environment.get_template("page.html.j2").render(
            title=" and ".join(names),
            runs=runs,
            together=self._together(facts, names) if len(facts) > 1 else None,
            css=(FOLDER / "page.css").read_text(encoding="utf-8"),
            script=(FOLDER / "page.js").read_text(encoding="utf-8"),
            palette=palette,
            figure=self._figure,
            data=self._all_data,
            bundle=bundle,
        )

    def _run(self, facts: Facts, name: str, prefix: str) -> dict[str, Any]:
        """Variables of the template for a run."""
        sections = sections_of(facts)
        return {
            "id": prefix,
            "name": name,
            "lead": _lead(facts),
            "parts": [self._part(facts, prefix, each, section) for each, section in sections.items()],
            "commands": [*(c for section in sections.values() if section for c in section.commands), *_commands(facts)],
            "attempts": facts.run.manifest()["attempts"],
        }

    def _part(self, facts: Facts, prefix: str, name: str, section: Section | None) -> dict[str, Any]:
        """Variables of the template for a section."""
        command = f"wellread {name} {shlex.quote(str(facts.run.path))}"
        part = {"id": f"{prefix}{name}", "link": name, "section": section}
        if section is None:
            return part | {"heading": name.capitalize(), "command": command}
        return part | {"text": self._text(section, prefix)}

    def _together(self, facts: Sequence[Facts], names: Sequence[str]) -> dict[str, Any]:
        """Variables of the template for the section about all runs."""
        section = together(facts, names)
        return {"section": section, "text": self._text(section, "")}

    def _text(self, section: Section, prefix: str) -> str:
        """Text of a section as HTML; registers its data. `prefix` begins the ids of the sections of its run."""
        from markupsafe import Markup

        self._data.append(section.data)
        variables = {"index": len(self._data) - 1, "prefix": prefix}
        return Markup(self._environment.from_string(section.template).render(section.values, **variables))

    def _figure(self, picture: Picture) -> int:
        """Register a figure; its index in the data of the page."""
        self._figures.append(for_page(picture.figure, picture.alt))
        return len(self._figures) - 1

    def _all_data(self) -> str:
        """The data of the page, after all its figures."""
        from markupsafe import Markup

        return Markup(as_json({"figures": self._figures, "sections": self._data}))


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    return environment


def _names(runs: Sequence[RunDirectory]) -> list[str]:
    """Names of the runs; their paths when two have the same name."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _lead(facts: Facts) -> str:
    config, tokens = facts.run.config(), facts.checkpoints[-1].tokens if facts.checkpoints else 0
    read = f"{facts.record.batches:,} batches read, {tokens:,} tokens at the last checkpoint"
    return f"{config.model.name} on {config.data.name}: {read}."


def _commands(facts: Facts) -> Iterator[tuple[str, str]]:
    path = shlex.quote(str(facts.run.path))
    yield "Verify that the record matches the order", f"wellread verify {path}"
    yield "Watch the curves", f"tensorboard --logdir {shlex.quote(str(facts.run.tb))}"
    if facts.checkpoints:
        model = f"AutoModelForCausalLM.from_pretrained({str(facts.checkpoints[-1].model)!r})"
        yield "Load the last checkpoint in Python (transformers)", model
