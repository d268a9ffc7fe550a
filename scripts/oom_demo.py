"""Out of memory under plain DDP, as with pythia-12b but scaled to any machine: what is killed, and what trains.

    python -m scripts.oom_demo [--keep DIRECTORY]

The runs start in a memory control group (cgroup v1 or v2). The kernel enforces its limit, which is too small for DDP on
two ranks and large enough for the strategy that the plan chooses. Creating control groups usually needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.memory import SHAPES, make_long_rows, make_model
from wellread.models.registry import find
from wellread.planning.estimate import Work, estimate
from wellread.planning.host_memory import MOUNT, OWN_GROUPS
from wellread.planning.machine import Machine
from wellread.planning.plan import Plan
from wellread.units import GIB

ROOT = Path(__file__).resolve().parent.parent
SHAPE, STEPS, SEQ_LEN = "120M", 4, 128
LIMIT = 5.0
"""Limit of the control group, GiB: DDP on two ranks needs more, ZeRO needs less."""
FLAGS = (
    f"--ranks_per_node 2 --batch_size 4 --micro_batch_size 2 --seq_len {SEQ_LEN} --steps {STEPS} --save_every {STEPS}"
)


@dataclass(frozen=True)
class Group:
    """A memory control group."""

    folder: Path
    version: int

    def enter(self) -> None:
        """Move this process into the group; for `preexec_fn`."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def kills(self) -> int:
        """Number of its processes that the OOM killer has killed."""
        text = (self.folder / {1: "memory.oom_control", 2: "memory.events"}[self.version]).read_text()
        return int(next(line for line in text.splitlines() if line.startswith("oom_kill ")).split()[1])


@contextmanager
def memory_group(limit: int, name: str = "") -> Iterator[Group]:
    """A control group that limits the memory of its processes together, including swap, to `limit` bytes.

    The name of its folder ends with `name`.

    Raises
    ------
    PermissionError, FileNotFoundError
        When this user cannot create control groups, or the kernel has no memory controller.
    """
    lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    current = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
    version, parent = (2, MOUNT) if current is None else (1, MOUNT / "memory" / current.lstrip("/"))
    if version == 2 and "memory" not in (MOUNT / "cgroup.subtree_control").read_text().split():
        raise FileNotFoundError("the memory controller is not enabled for groups below the root group")
    group = Group(parent / f"wellread-{os.getpid()}{name}", version)
    group.folder.mkdir()
    try:
        sizes = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 2: ("memory.max", "memory.swap.max")}
        memory, swap = (group.folder / name for name in sizes[version])
        memory.write_text(str(limit))
        if swap.exists():  # v1 counts memory and swap together
            swap.write_text(str(limit if version == 1 else 0))
        yield group
    finally:
        _remove(group.folder)


def _remove(folder: Path) -> None:
    """Kill the processes that still run in a group, and remove it."""
    for number in (folder / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)
    for _ in range(50):
        with suppress(OSError):  # busy until the kernel has removed the last process
            folder.rmdir()
            return
        time.sleep(0.1)
    folder.rmdir()


def may_limit_memory() -> bool:
    """Whether this user can create memory control groups."""
    try:
        with memory_group(GIB):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Ran:
    """A launch that has ended."""

    code: int
    kills: int
    strategies: list[str]
    """Strategy of each attempt."""
    predicted: float | None
    """Predicted host memory of the last attempt, GiB."""
    loss: str
    """Last logged loss."""


def launched(title: str, group: Group, place: Path, run: str, *flags: str) -> Ran:
    """Start a run in the group, print its output, and return how it ended."""
    out = place / "runs" / run
    arguments = f"run finetune --model {place / 'model'} --data {place / 'rows.jsonl'} {FLAGS} --log_every 1".split()
    command = [
        sys.executable,
        "-m",
        "launch",
        *arguments,
        "--corpora",
        str(place / "corpora"),
        "--out",
        str(out),
        *flags,
    ]
    print(f"\n== {title}\n$ wellread run finetune ... {' '.join(flags)}", flush=True)
    before = group.kills
    code = subprocess.run(command, cwd=ROOT, preexec_fn=group.enter, check=False).returncode
    print(f"-> exit code {code}, {group.kills - before} processes killed by the OOM killer", flush=True)
    manifest = out / "manifest.json"
    attempts = json.loads(manifest.read_text())["attempts"] if manifest.exists() else []
    logs = sorted((out / "log").glob("attempt-*-rank-0.log"))
    lines = [line for log in logs for line in log.read_text().splitlines() if line.startswith("step ")]
    loss = lines[-1].split("loss")[1].split()[0] if lines else "-"
    plan = Plan.open(out / "plan.json") if attempts else None
    predicted = plan.needs["host_bytes"] / GIB if plan and plan.needs else None
    return Ran(code, group.kills - before, [attempt["strategy"] for attempt in attempts], predicted, loss)


def demonstrate(place: Path, limit: int) -> int:
    """Run the four cases; return 0 if each ended as expected."""
    make_model(place / "model", SHAPES[SHAPE])
    make_long_rows(place / "rows.jsonl")
    spec, machine = find(str(place / "model")), Machine(device="cpu", ranks_per_node=2, host_mem=limit / GIB)
    naive = estimate(spec, Work(micro_batch=2, seq_len=SEQ_LEN), machine, "ddp")
    print(
        f"{SHAPE} parameters on 2 ranks, {limit / GIB:.2f} GiB; DDP is estimated to need {naive.host_bytes / GIB:.2f}"
    )
    with memory_group(limit) as group:
        rejected = launched("the memory check rejects DDP", group, place, "refused", "--strategy", "ddp")
        title = "DDP with --force: killed by the OOM killer"
        killed = launched(title, group, place, "naive", "--strategy", "ddp", "--force", "--ladder", "off")
        moved = launched(
            "DDP with fallback: continues with ZeRO", group, place, "ladder", "--strategy", "ddp", "--force"
        )
        planned = launched("the strategy that the plan chooses", group, place, "planned")
    rows = {"check": rejected, "naive": killed, "fallback": moved, "planned": planned}
    print(f"\n{'':8} {'exit code':>9} {'OOM kills':>12} {'estimated GiB':>13} {'last loss':>9}  strategies")
    for name, ran in rows.items():
        needed = "-" if ran.predicted is None else f"{ran.predicted:.2f}"
        numbers = f"{ran.code:>9} {ran.kills:>12} {needed:>13} {ran.loss:>9}"
        print(f"{name:8} {numbers}  {' -> '.join(ran.strategies) or '-'}")
    as_expected = (
        (rejected.code, rejected.kills) == (2, 0)
        and killed.code == 137
        and killed.kills > 0
        and (moved.code, moved.strategies[0], len(moved.strategies)) == (0, "ddp", 2)
        and moved.kills > 0
        and (planned.code, planned.kills, planned.loss) == (0, 0, moved.loss)
    )
    print("as expected" if as_expected else "NOT as expected: see above", flush=True)
    return 0 if as_expected else 1


def main() -> int:
    """Create a folder, run the demonstration in it, and remove it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep the model and the runs in this directory")
    options = parser.parse_args()
    limit = int(LIMIT * GIB)
    if not may_limit_memory():
        print("oom-demo: cannot create a memory control group; run it as root", file=sys.stderr)
        return 2
    place = options.keep or Path(tempfile.mkdtemp(prefix="wellread-oom-"))
    place.mkdir(parents=True, exist_ok=True)
    try:
        return demonstrate(place, limit)
    finally:
        if not options.keep:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
