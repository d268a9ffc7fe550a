"""Backends whose launcher stays with the ranks: it starts them, waits, and goes on when their memory ran out."""

from __future__ import annotations

import signal
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from launch import attempts, ladder, ops
from launch.backends import elastic
from launch.backends.base import Backend, Settle, Training, summary
from wellread.errors import FAILURE
from wellread.planning.plan import Plan
from wellread.run import RunDirectory


class Attended(Backend):
    """A backend whose ranks end with their launcher."""

    @abstractmethod
    def hosts(self, nodes: int) -> list[str]:
        """Names of the nodes that take part."""

    @abstractmethod
    def start(
        self, run: RunDirectory, arguments: list[str], plan: Plan, variables: dict[str, str], code: Path, attempt: int
    ) -> int:
        """Start the ranks of an attempt as ``python ARGUMENTS`` in folder `code`, wait, and return the exit code."""

    def train(self, training: Training, settle: Settle, refuse_changed: Callable[[], None]) -> int:
        """Train here and now, then run what follows; return the exit code."""
        with training.run.lock():
            plan = settle()
            if isinstance(plan, int):
                return plan
            code = self._train(training, plan) if plan else 0
        if code == 0 and training.then:
            return subprocess.run([sys.executable, *training.then], check=False).returncode
        return code

    def _train(self, training: Training, plan: Plan) -> int:
        """Run the ranks; when their memory ran out, go on with the next strategy that fits."""
        while True:
            attempt, code = self._attempt(training, plan)
            failure = ladder.note(training.run, plan, attempt) if code else None
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
        variables["WELLREAD_ATTEMPT"] = str(attempt)
        print(f"training {run.path}: {summary(plan)}", flush=True)
        code = FAILURE
        try:
            code = self.start(run, training.arguments, plan, variables, training.code, attempt)
        except KeyboardInterrupt:  # before the backend listens: nothing runs yet
            code = 128 + signal.SIGINT
        finally:
            attempts.end(run, attempt, code)
        if code > 128 and code - 128 not in elastic.STOP_SIGNALS:
            for rank in attempts.lost_ranks(run, attempt, plan.ranks):  # which the backend has named
                attempts.note_signal(run, attempt, rank, code - 128)
        elif code:
            attempts.show_first_error(run, attempt)
        return attempt, code
