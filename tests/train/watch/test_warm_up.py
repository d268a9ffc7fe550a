"""Rate and time left are computed without the steps in which layers are compiled."""

from __future__ import annotations

from wellread.train.watch.monitor import RECENT, StepStats, averaged
from wellread.train.watch.throughput import Cost

COST = Cost(tokens=1, targets=1, squares=1, padded=1, host_bytes=0, gpu_bytes=0)


def after(*warm_up: bool) -> list[int]:
    """Steps that count after steps of which some were warm-up."""
    recent: list[StepStats] = []
    for step, warms in enumerate(warm_up):
        recent = averaged(recent, StepStats(step=step, loss=1, lr=1, grad_norm=1, cost=COST, seconds=9, warm_up=warms))
    return [stats.step for stats in recent]


def test_warm_up_counts_only_while_there_is_nothing_else() -> None:
    assert after(True, True) == [0, 1]
    assert after(True, True, False) == [2]
    assert after(True, False, True, False) == [1, 3]
    assert after(False, False, True) == [0, 1]


def test_the_last_steps_count() -> None:
    assert after(*[False] * 50) == list(range(50 - RECENT, 50))
