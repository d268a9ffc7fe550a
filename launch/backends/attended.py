"""Backends with a launcher that runs as long as the ranks: it starts them, waits, and handles out-of-memory errors."""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from launch import attempts, children, ladder, ops
from launch.backends import elastic
from launch.backends.base import Backend, Settle, Training, summary
from wellread.errors import FAILURE
from wellread.planning.plan import Plan
from wellread.processes import ATTEMPT_NUMBER
from wellread.run import RunDirectory


class Attended(Backend):
    """A backend with ranks that end when the launcher ends."""

    @abstractmethod
    def hosts(self, nodes: int) -> list[str]:
        """Return the names of the first `nodes` nodes."""

    @abstractmethod
    def start(
        self, run: RunDirectory, arguments: list[str], plan: Plan, variables: dict[str, str], code: Path, attempt: int
    ) -> int:
        """Start the ranks of an attempt as ``python ARGUMENTS`` in folder `code`, wait, and return the exit code."""

    def train(self, training: Training, settle: Settle, refuse_changed: Callable[[], None]) -> int:
        """Train, then run the command that follows, if any; return the exit code."""
        with training.run.lock():
            plan = settle()
            if isinstance(plan, int):
                return plan
            code = self._train(training, plan) if plan else 0
        if code == 0 and training.then:
            return children.run(training.then)
        return code

    def _train(self, training: Training, plan: Plan) -> int:
        """Run the ranks; after an out-of-memory error, continue with the next strategy that fits."""
        while True:
            attempt, code = self._attempt(training, plan)
            asked_to_stop = code - 128 in elastic.STOP_SIGNALS  # also if memory ran out while it saved
            failure = ladder.note(training.run, plan, attempt) if code and not asked_to_stop else None
            lower = ladder.next_plan(training.run, plan) if failure and training.fall_back else None
            if lower is None:
                return code
            plan = lower

    def _attempt(self, training: Training, plan: Plan) -> tuple[int, int]:
        """Run the ranks once; return the attempt's number and the exit code."""
        run, variables = training.run, self.environment(plan, training.code)
        for op in ops.needed(plan):
            ops.ensure(op, variables)
        attempt = attempts.begin(run, plan, {"hosts": self.hosts(plan.machine.nodes)}, training.code)
        variables[ATTEMPT_NUMBER] = str(attempt)
        print(f"training {run.path}: {summary(plan)}", flush=True)
        code = FAILURE
        try:
            code = self.start(run, training.arguments, plan, variables, training.code, attempt)
        except KeyboardInterrupt:  # before the backend handles signals: no rank runs yet
            code = 128 + signal.SIGINT
        finally:
            attempts.end(run, attempt, code)
        if code > 128 and code - 128 not in elastic.STOP_SIGNALS:
            for rank in attempts.lost_ranks(run, attempt, plan.ranks):  # the backend has already printed them
                attempts.note_signal(run, attempt, rank, code - 128)
        elif code:
            attempts.show_first_error(run, attempt)
        return attempt, code
