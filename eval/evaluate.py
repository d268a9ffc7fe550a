"""Run any evaluation of `eval/registry.py`: its command line, its table, its parts for `--fan_out`."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from eval.evaluation import NO_FLAGS, Evaluation, PerCheckpoint
from eval.needs import a_checkpoint, a_writable_folder
from eval.progress import Reporter
from eval.registry import find, per_checkpoint
from wellread.cli import new_parser, parse
from wellread.errors import UserError
from wellread.run import RunDirectory

if TYPE_CHECKING:
    from wellread.results import Result


def main(kind: type[Evaluation], argv: list[str]) -> int:
    """``wellread NAME RUN``: evaluate, write table and report, print an overview."""
    options = _parse(kind, argv)
    only_scores, evaluation = options.pop("scores_only", False), _evaluation(kind, options)

    from wellread.terminal import say_narrow_table

    if listing := evaluation.listing():
        heads, rows, remark = listing
        say_narrow_table(heads, rows)
        print(remark)
        return 0
    if only_scores:
        assert isinstance(evaluation, PerCheckpoint)
        keep_scores(evaluation)
        return 0

    from eval.report.page import write

    earlier = _steps_of_table(evaluation)
    results = evaluate(evaluation)
    if results:
        say_narrow_table(*evaluation.overview(results))
    print(f"all results: {evaluation.table(evaluation.run)}")
    if lost := earlier - {result.step for result in results}:
        print(
            f"the table had other steps before ({', '.join(map(str, sorted(lost)))}); to have all of them: "
            f"wellread {kind.name} {shlex.quote(str(evaluation.run.path))}"
        )
    print(f"report: {write(evaluation.run)}")
    for line in evaluation.conclusions(results):
        print(line)
    return 0


def _steps_of_table(evaluation: Evaluation) -> set[int]:
    """Steps of the results on disk, which new ones replace."""
    if not isinstance(evaluation, PerCheckpoint):
        return set()
    try:
        return {result.step for result in evaluation.stored(evaluation.run)}
    except UserError:  # damaged, and about to be written again
        return set()


def evaluate(evaluation: Evaluation, *, progress: bool = True) -> list[Result]:
    """Run an evaluation and write its table, which replaces the previous one.

    Parameters
    ----------
    progress
        Whether to show on stderr the progress, and what is left out.

    Raises
    ------
    UserError
        When the run does not have what the evaluation needs.
    """
    evaluation.run.config()  # fail on a damaged config before the expensive part
    _check(evaluation)
    with Reporter(evaluation.work(), progress) as reporter:
        for note in evaluation.notes():
            reporter.note(note)
        results = list(evaluation.results(reporter))
    evaluation.write(results)
    return results


def _check(evaluation: Evaluation) -> None:
    """Refuse a run that does not have what an evaluation needs, or cannot take its results."""
    for need in (*evaluation.needs, a_writable_folder):
        need(evaluation.run)


def keep_scores(evaluation: PerCheckpoint[Any], *, progress: bool = True) -> None:
    """Score each checkpoint and keep the scores: the part of `evaluate` that can run in parallel."""
    _check(evaluation)
    with Reporter(evaluation.work(), progress) as reporter:
        for checkpoint in evaluation.checkpoints:
            evaluation.score(checkpoint, reporter)


def parts(argv: list[str]) -> int:
    """``python -m eval parts NAME RUN …``, for launch: print as JSON the arguments of `eval` for each checkpoint."""
    if not argv:
        raise UserError("eval parts: the evaluation is missing; write python -m eval parts membership RUN")
    name, *arguments = argv
    if name not in (names := per_checkpoint()):
        raise UserError(f"--fan_out: eval {name} cannot be split by checkpoint; it works with {', '.join(names)}")
    options = _parse(find(name), arguments)
    if options["steps"] not in (None, "all"):
        raise UserError("--fan_out: evaluates all checkpoints; leave it out to evaluate only those of --steps")
    evaluation = _evaluation(find(name), {key: value for key, value in options.items() if key != "scores_only"})
    assert isinstance(evaluation, PerCheckpoint)
    a_checkpoint(evaluation.run)
    steps = [str(checkpoint.step) for checkpoint in evaluation.checkpoints]
    print(json.dumps([[*argv, "--steps", step, "--scores_only"] for step in steps]))
    return 0


def _parse(kind: type[Evaluation], argv: list[str]) -> dict[str, Any]:
    """Name -> value of the run and all flags."""
    fans_out = issubclass(kind, PerCheckpoint)
    example = f"example:\n  wellread {kind.name} runs/tiny-sample" + " --steps 0,100,200" * fans_out + kind.more_help
    parser = new_parser(f"wellread {kind.name}", f"{kind.summary[0].upper()}{kind.summary[1:]}.", example)
    parser.add_argument("run", metavar="RUN", help="Run directory.")
    if kind.several:
        parser.add_argument("more_runs", metavar="RUN2", nargs="*", help="Further runs, to compare with it.")
    if fans_out:
        parser.add_argument("--steps", help="Checkpoints: all, or a list of steps such as 0,100,last (default: all).")
    parser.add_class_arguments(
        kind, nested_key=None, as_group=False, skip=NO_FLAGS | kind.switches.keys() | kind.without
    )
    for name, text in kind.switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    if fans_out:
        parser.add_argument(
            "--scores_only",
            action="store_true",
            help="Only compute and keep the scores, for --fan_out; do not compare.",
        )
        parser.add_argument(
            "--verify",
            action="store_true",
            help="Hash all model files again, also those that have not changed since the last evaluation.",
        )
    return dict(parse(parser, argv).as_dict())


def _evaluation(kind: type[Evaluation], options: dict[str, Any]) -> Evaluation:
    run = RunDirectory.open(options.pop("run"))
    run.refuse_links()
    words = options.pop("steps", None)
    if words not in (None, "all"):
        options["steps"] = [step for word in words.split(",") for step in _steps(run, word.strip())]
    return kind(run, **options)


def _steps(run: RunDirectory, word: str) -> list[int]:
    """The step that a word of `--steps` means; for `last` none without a checkpoint, which the evaluation refuses."""
    if word == "last":
        from wellread.checkpoint import list_checkpoints

        return [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints)[-1:]]
    digits = word.removeprefix("step-")
    if not digits.isdecimal():
        raise UserError(f"--steps {word}: not a step; give only all, or a list such as 100,last or step-100")
    return [int(digits)]
