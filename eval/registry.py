"""The evaluations there are. The command line, the report and launch's fan-out know only this table.

To add one, write a class of `eval/evaluation.py` in a folder of its own and name it here.
"""

from __future__ import annotations

from importlib import import_module

from eval.evaluation import Evaluation, PerCheckpoint

EVALUATIONS: dict[str, str] = {"membership": "eval.membership.evaluation:Membership"}
"""Name -> module:class, in the order of help and report; imported when it is needed."""


def find(name: str) -> type[Evaluation]:
    """The evaluation of this name, which must be in the table."""
    module, _, kind = EVALUATIONS[name].partition(":")
    found: type[Evaluation] = getattr(import_module(module), kind)
    assert found.name == name
    return found


def evaluations() -> list[type[Evaluation]]:
    """All of them."""
    return [find(name) for name in EVALUATIONS]


def per_checkpoint() -> list[str]:
    """Names of those that can be fanned out over checkpoints."""
    return [kind.name for kind in evaluations() if issubclass(kind, PerCheckpoint)]
