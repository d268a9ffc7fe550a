"""Table of the evaluations. The command line, the report and `--fan_out` of launch use only this table.

To add one, write a subclass of `eval.evaluation.Evaluation` in a new folder and list it here.
"""

from __future__ import annotations

from importlib import import_module

from eval.evaluation import Evaluation, PerCheckpoint

EVALUATIONS: dict[str, str] = {
    "membership": "eval.membership.evaluation:Membership",
    "forgetting": "eval.forgetting.evaluation:Forgetting",
    "memorization": "eval.memorization.evaluation:Memorization",
    "canaries": "eval.canaries.evaluation:Canaries",
    "marks": "eval.marks.evaluation:MarksEvaluation",
    "generations": "eval.generations.evaluation:Generations",
    "saturation": "eval.saturation.evaluation:Saturation",
}
"""Name -> module:class, in the order of help and report; imported on demand."""


def find(name: str) -> type[Evaluation]:
    """Class of the evaluation with this name, which must be in the table."""
    module, _, kind = EVALUATIONS[name].partition(":")
    evaluation: type[Evaluation] = getattr(import_module(module), kind)
    assert evaluation.name == name
    return evaluation


def evaluations() -> list[type[Evaluation]]:
    """Classes of all evaluations."""
    return [find(name) for name in EVALUATIONS]


def per_checkpoint() -> list[str]:
    """Names of the evaluations that can be split by checkpoint."""
    return [kind.name for kind in evaluations() if issubclass(kind, PerCheckpoint)]
